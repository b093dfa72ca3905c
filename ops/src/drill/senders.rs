//! The senders of a drill. Each insists: with keys, again and again through kills, until it knows what became of a message,
//! and then writes it into the ledger.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::Method;
use rand::{Rng, seq::IndexedRandom};
use schemas::{Priority, Timestamp};
use serde_json::{Value, json};

use super::{
    ledger::{Cancel, Promise, Stream},
    phones::AGAIN,
    world::{TENANTS, World},
};

/// What a sender that insisted came to know.
enum Outcome {
    /// Accepted.
    Accepted(Value),
    /// Refused, and perhaps accepted by an answer that was lost.
    Perhaps,
    /// Refused from the first.
    Refused(Value),
}

/// Sends until it is accepted, or refused for good.
async fn insist(world: &World, path: &str, token: &str, body: &Value) -> Outcome {
    let mut lost = false;
    loop {
        match world.ask(Method::POST, path, token, Some(body)).await {
            (202, answer) => return Outcome::Accepted(answer),
            (status @ (0 | 408 | 429 | 500..), _) => lost |= status == 0 || status >= 500,
            // Only what has an end can have been accepted and be refused when it is said again.
            (_, _) if lost && body["expires_at"].is_string() => return Outcome::Perhaps,
            (_, problem) => return Outcome::Refused(problem),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

fn any_lane() -> Priority {
    Priority::ALL.choose(&mut rand::rng()).copied().unwrap_or_default()
}

async fn pause(slower: u32, ms: std::ops::Range<u64>) {
    let ms = rand::rng().random_range(ms) * u64::from(slower);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// The next number of each stream to each recipient.
#[derive(Default)]
struct Numbers(HashMap<(usize, Stream), u64>);

impl Numbers {
    fn next(&mut self, to: usize, stream: Stream) -> (String, Promise) {
        let n = self.0.entry((to, stream)).or_default();
        *n += 1;
        (format!("{}.{}.{n}", stream.0, stream.1.word()), Promise::InOrder(stream, *n))
    }
}

/// Keyed singles to one recipient, lanes mixed.
pub(super) async fn singles(world: Arc<World>, to: usize) {
    let (person, mut numbers) = (&world.people[to], Numbers::default());
    while !world.over.is_cancelled() {
        let open = world.gate.read().await;
        let lane = any_lane();
        let (content, promise) = numbers.next(to, ("single", lane));
        let body =
            json!({ "to": person.number, "content": content, "key": format!("{to}.{content}"), "priority": lane });
        single(&world, &world.servers[person.tenant], to, &body, promise).await;
        drop(open);
        pause(world.pace.slower, 1..15).await;
    }
}

/// One message, written down.
async fn single(world: &World, token: &str, to: usize, body: &Value, promise: Promise) -> Option<String> {
    let content = body["content"].as_str().unwrap_or_default();
    match insist(world, "/v1/messages", token, body).await {
        Outcome::Accepted(answer) => {
            world.accepted(to, content, &answer, promise);
            return answer["id"].as_str().map(str::to_owned);
        }
        Outcome::Perhaps => world.accepted(to, content, &Value::Null, Promise::Perhaps),
        // Its time was past before it came to the door.
        Outcome::Refused(_) if body["expires_at"].is_string() => {}
        Outcome::Refused(problem) => world.fault(format!("{content:?} was refused: {problem}")),
    }
    None
}

/// Items of a batch at least, whatever a rate leaves of it.
const BATCH: usize = 20;
/// So long after nobody took anything a rate still asks for what could not be sent, s: more would be a load of its own.
const OWED_S: f64 = 5.0;

/// What a rate asks for and has not been sent: one tenant's part, so many messages a second.
struct Owed {
    rate: f64,
    count: f64,
    open_ms: u64,
    accepted: usize,
}

impl Owed {
    fn new(rate: f64, open_ms: u64, accepted: usize) -> Self {
        Self { rate, count: 0.0, open_ms, accepted }
    }

    /// How many a batch is to have now. `open_ms`: how long people could send by now, ms. `accepted`: what this tenant's people
    /// have sent by now, which is not owed any more.
    fn batch(&mut self, open_ms: u64, accepted: usize) -> usize {
        let fresh = self.rate * open_ms.saturating_sub(self.open_ms) as f64 / 1e3;
        self.count += fresh - accepted.saturating_sub(self.accepted) as f64;
        self.count = self.count.min(OWED_S * self.rate);
        (self.open_ms, self.accepted) = (open_ms, accepted);
        (self.count.max(0.0) as usize).max(BATCH)
    }
}

/// Batches over NDJSON to all of a tenant's recipients, lanes mixed; some break off in the middle and are sent again whole.
pub(super) async fn batches(world: Arc<World>, tenant: usize) {
    let (everyone, mut numbers) =
        ((0..world.people.len()).filter(|n| world.people[*n].tenant == tenant), Numbers::default());
    let everyone: Vec<_> = everyone.collect();
    let accepted = || world.ledger.lock().iter().filter(|sent| world.people[sent.to].tenant == tenant).count();
    let share = |rate: u32| f64::from(rate) / TENANTS.len() as f64;
    let mut owed = world.pace.rate.map(|rate| Owed::new(share(rate), world.open_ms(), accepted()));
    while !world.over.is_cancelled() {
        let open = world.gate.read().await;
        let any = || rand::rng().random_range(BATCH..200);
        let count = owed.as_mut().map_or_else(any, |owed| owed.batch(world.open_ms(), accepted()));
        let mut items = Vec::new();
        for _ in 0..count {
            let to = everyone.choose(&mut rand::rng()).copied().unwrap_or_default();
            let lane = any_lane();
            let (content, promise) = numbers.next(to, ("batch", lane));
            let key = format!("{to}.{content}");
            let body = json!({ "to": world.people[to].number, "content": content, "key": key, "priority": lane });
            items.push((to, content, promise, format!("{body}\n")));
        }
        if rand::rng().random_bool(0.25) {
            break_off(&world, tenant, &items.iter().map(|i| i.3.as_str()).collect::<Vec<_>>()).await;
        }
        let whole: String = items.iter().map(|item| item.3.as_str()).collect();
        loop {
            match batch(&world, tenant, whole.clone(), items.len()).await {
                Ok(Some(answers)) => {
                    for ((to, content, promise, _), answer) in items.iter().zip(&answers) {
                        world.accepted(*to, content, answer, *promise);
                    }
                    break;
                }
                Ok(None) => {
                    world.broken_batches.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(AGAIN).await;
                }
                Err(problem) => {
                    world.fault(format!("an item of a batch was refused: {problem}"));
                    break;
                }
            }
        }
        drop(open);
        let (slower, ms) = if owed.is_some() { (1, 200..1_000) } else { (world.pace.slower, 20..150) };
        pause(slower, ms).await;
    }
}

/// One batch: all answers where every item was accepted; `None` where it broke or has to be sent again.
async fn batch(world: &World, tenant: usize, lines: String, count: usize) -> Result<Option<Vec<Value>>, Value> {
    let request = world.http.post(format!("{}/v1/messages/batch", world.doors.url)).bearer_auth(&world.servers[tenant]);
    let answered = async {
        let sent = request.header("content-type", "application/x-ndjson").body(lines).send().await.ok()?;
        sent.text().await.ok()
    };
    let Some(text) = answered.await else { return Ok(None) };
    let answers: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let refused = |answer: &&Value| matches!(answer["status"].as_u64(), Some(400..=499)) && answer["status"] != 429;
    if let Some(problem) = answers.iter().find(refused) {
        return Err(problem.clone());
    }
    let whole = answers.len() == count && answers.iter().all(|answer| answer["status"] == 202);
    Ok(whole.then_some(answers))
}

/// Sends the beginning of a batch and breaks off in the middle of a line.
async fn break_off(world: &World, tenant: usize, lines: &[&str]) {
    let mut half: String = lines[..lines.len() / 2].concat();
    half.push_str("{\"to\":\"+9627");
    let broken = futures::stream::iter([Ok(half.into_bytes()), Err(std::io::Error::other("the line broke"))]);
    let request = world.http.post(format!("{}/v1/messages/batch", world.doors.url)).bearer_auth(&world.servers[tenant]);
    let request = request.header("content-type", "application/x-ndjson");
    let _ = request.body(reqwest::Body::wrap_stream(broken)).send().await;
    world.broken_batches.fetch_add(1, Ordering::Relaxed);
}

/// Messages with a story of their own: for later, with an end, taken back, to sleepers.
pub(super) async fn stories(world: Arc<World>, tenant: usize) {
    let (awake, asleep) = (world.of(tenant, false), world.of(tenant, true));
    let mut numbers = Numbers::default();
    let token = &world.servers[tenant];
    for n in 0u64.. {
        if world.over.is_cancelled() {
            return;
        }
        let open = world.gate.read().await;
        let in_ms = |range| world.clock.wall().plus_ms(rand::rng().random_range(range));
        let pick = |of: &[usize]| of.choose(&mut rand::rng()).copied().unwrap_or_default();
        let (to_awake, to_asleep) = (pick(&awake), pick(&asleep));
        let draft = |to: usize, what: &str| {
            json!({ "to": world.people[to].number, "content": format!("{what}.{n}"), "key": format!("{tenant}.{what}.{n}"),
                    "priority": any_lane() })
        };
        match n % 7 {
            0 => {
                let at = in_ms(200..4_000);
                let mut body = draft(to_awake, "later");
                body["send_at"] = json!(at);
                single(&world, token, to_awake, &body, Promise::NotBefore(at)).await;
            }
            1 => {
                let at = in_ms(200..4_000);
                let mut body = draft(to_asleep, "later-asleep");
                body["send_at"] = json!(at);
                single(&world, token, to_asleep, &body, Promise::NotBefore(at)).await;
            }
            2 => {
                let at = in_ms(300..1_500);
                let mut body = draft(to_asleep, "ends-asleep");
                body["expires_at"] = json!(at);
                single(&world, token, to_asleep, &body, Promise::Expires).await;
                let mut last = world.last_expiry.lock();
                *last = at.max(*last);
            }
            3 => {
                let mut body = draft(to_awake, "may-end");
                body["expires_at"] = json!(in_ms(20..800));
                single(&world, token, to_awake, &body, Promise::MayExpire).await;
            }
            4 => taken_back(&world, tenant, to_asleep, &draft(to_asleep, "taken-asleep"), None).await,
            5 => taken_back(&world, tenant, to_awake, &draft(to_awake, "taken"), Some(Timestamp(0))).await,
            _ => {
                let at = in_ms(2_000..4_000);
                let mut body = draft(to_awake, "taken-later");
                body["send_at"] = json!(at);
                taken_back(&world, tenant, to_awake, &body, Some(at)).await;
            }
        }
        // What waits for a sleeper stands in order too.
        let (content, promise) = numbers.next(to_asleep, ("asleep", Priority::Normal));
        let body = json!({ "to": world.people[to_asleep].number, "content": content, "key": format!("{to_asleep}.{content}") });
        single(&world, token, to_asleep, &body, promise).await;
        drop(open);
        pause(world.pace.slower, 5..40).await;
    }
}

/// A message that is taken back at once. `visible_from`: when a phone may see it, `None` for never.
async fn taken_back(world: &World, tenant: usize, to: usize, body: &Value, visible_from: Option<Timestamp>) {
    let token = &world.servers[tenant];
    let Outcome::Accepted(answer) = insist(world, "/v1/messages", token, body).await else {
        world.fault(format!("{body} was refused"));
        return;
    };
    let path = format!("/v1/messages/{}", answer["id"].as_str().unwrap_or_default());
    let cancel = loop {
        match world.ask(Method::DELETE, &path, token, None).await.0 {
            200 => break Cancel::Done,
            202 => break Cancel::Open,
            409 => break Cancel::TooLate,
            // Not recorded yet, or the server is away.
            0 | 404 | 408 | 429 | 500.. => tokio::time::sleep(AGAIN).await,
            other => {
                world.fault(format!("taking {path} back was answered {other}"));
                break Cancel::Open;
            }
        }
    };
    let unseen = visible_from.is_none_or(|from| world.clock.wall() < from);
    let promise = if unseen { Promise::CancelledUnseen(cancel) } else { Promise::Cancelled(cancel) };
    world.accepted(to, body["content"].as_str().unwrap_or_default(), &answer, promise);
}

/// Broadcasts to everybody of a tenant, when they are wanted.
pub(super) async fn herald(world: Arc<World>, tenant: usize) {
    let everyone: Vec<_> = (0..world.people.len()).filter(|n| world.people[*n].tenant == tenant).collect();
    let numbers: Vec<_> = everyone.iter().map(|n| world.people[*n].number.as_str()).collect();
    let mut made = 0;
    while !world.over.is_cancelled() {
        if world.broadcasts.load(Ordering::Acquire) <= made {
            tokio::time::sleep(AGAIN).await;
            continue;
        }
        let open = world.gate.read().await;
        made += 1;
        let content = format!("news.{made}");
        let body = json!({ "to": numbers, "content": content, "key": content });
        match insist(&world, "/v1/broadcasts", &world.servers[tenant], &body).await {
            Outcome::Accepted(_) => {
                everyone.iter().for_each(|to| world.accepted(*to, &content, &Value::Null, Promise::Arrives));
            }
            Outcome::Perhaps => world.fault(format!("{content}: refused after its answer was lost")),
            Outcome::Refused(problem) => world.fault(format!("{content} was refused: {problem}")),
        }
        drop(open);
    }
}

/// What the business user at its desk sends: it is told of each.
pub(super) async fn from_desk(world: Arc<World>, tenant: usize) {
    let (awake, mut numbers) = (world.of(tenant, false), Numbers::default());
    while !world.over.is_cancelled() {
        let open = world.gate.read().await;
        let to = awake.choose(&mut rand::rng()).copied().unwrap_or_default();
        let (content, promise) = numbers.next(to, ("desk", Priority::High));
        let key = format!("{to}.{content}");
        let body =
            json!({ "to": world.people[to].number, "content": content, "key": key, "ref": key, "priority": "high" });
        single(&world, &world.desks[tenant], to, &body, promise).await;
        if let Some(last) = world.ledger.lock().iter_mut().rev().find(|sent| sent.to == to && sent.content == content) {
            last.by_desk = true;
        }
        drop(open);
        pause(world.pace.slower, 40..120).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_make_up_what_others_leave_of_a_rate() {
        let mut owed = Owed::new(100.0, 1_000, 50);
        assert_eq!(owed.batch(2_000, 50), 100, "a second's share");
        // That batch, and 30 of others.
        assert_eq!(owed.batch(3_000, 180), 70);
        assert_eq!(owed.batch(3_000, 250), BATCH, "nothing is owed: a small one goes all the same");
        assert_eq!(owed.batch(3_500, 270), 30, "and is taken off");
        assert_eq!(owed.batch(3_600, 1_000), BATCH, "others send more than is asked for");
        let mut owed = Owed::new(100.0, 0, 0);
        assert_eq!(owed.batch(60_000, 0), 500, "what a minute could not take is not sent at once");
        assert_eq!(owed.batch(60_000, 500), BATCH, "nor later");
    }
}
