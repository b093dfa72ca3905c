//! A device of somebody who talks: it keeps its cursor, says and marks things over its socket, comes and goes, and says again
//! what was not answered, on whichever connection it has then.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};

use super::{PATIENCE, Said, Talk};
use crate::harness::Phone;

/// What may be unanswered at once: so that several are under way when a line breaks.
const UNANSWERED: usize = 4;
/// How long a device that comes and goes is away at most, ms.
const AWAY_MS: u64 = 1_500;
/// The steps that a message's status may take on one connection.
const STEPS: [&str; 4] = ["pending", "sent", "delivered", "read"];

struct Sending {
    pair: usize,
    content: String,
    begun: u64,
    /// It was refused for a time.
    again: bool,
}

/// One device.
pub struct Device {
    /// Its socket, and what came.
    pub phone: Phone,
    /// Whose it is.
    pub(super) who: String,
    name: String,
    side: usize,
    /// The pairs that its user is one of.
    pub(super) pairs: Vec<usize>,
    goes: bool,
    rng: StdRng,
    count: u64,
    sending: BTreeMap<u64, Sending>,
    said: HashMap<u64, (usize, String, String)>,
    /// The highest number of each pair that came here.
    highest: HashMap<usize, u64>,
    /// How far the status of each message was told on this connection.
    told: HashMap<String, usize>,
    /// What should not have come.
    pub wrong: Vec<String>,
}

impl Device {
    /// A device called `name` of whoever is on that side of a pair. `goes`: it loses its line now and then.
    pub fn new(talk: &Talk, phone: Phone, (pair, side): (usize, usize), name: &str, goes: bool, seed: u64) -> Self {
        let who = talk.pairs[pair].sides[side].name.clone();
        let pairs = (0..talk.pairs.len()).filter(|n| talk.pairs[*n].sides[side].name == who).collect();
        Self {
            phone,
            who,
            name: name.to_owned(),
            side,
            pairs,
            goes,
            rng: StdRng::seed_from_u64(seed),
            count: 0,
            sending: BTreeMap::new(),
            said: HashMap::new(),
            highest: HashMap::new(),
            told: HashMap::new(),
            wrong: Vec::new(),
        }
    }

    /// Comes for the first time, before anything is said, and keeps the place that it is given: a device without one is a new
    /// one each time that it comes, and is given what no other device of its user has.
    pub async fn arrives(&mut self) {
        let welcome = self.phone.insist().await;
        self.phone.cursor = welcome["cursor"].as_str().map(str::to_owned);
    }

    /// Talks until it is stopped and everything that it said is answered.
    pub async fn talks(&mut self, talk: &Talk) {
        while !(talk.is_over() && self.sending.is_empty()) {
            if !self.phone.is_connected() {
                self.comes(talk).await;
            }
            // The load's pace, and nothing that is waited for.
            let rest = talk.rest.mul_f64(self.rng.random_range(0.2..1.0)).max(Duration::from_millis(1));
            let rested = tokio::time::sleep(rest);
            tokio::pin!(rested);
            loop {
                tokio::select! {
                    () = &mut rested => break self.acts(talk).await,
                    frame = self.phone.next() => match frame {
                        Some(frame) => self.takes(talk, &frame),
                        None => break self.lost(),
                    },
                }
            }
        }
    }

    /// Reads until it has seen so many messages, and all that was sent to it meanwhile; or for as long as that may take.
    pub async fn until_all(&mut self, talk: &Talk, count: usize) {
        let read = async {
            while self.phone.received.len() < count {
                if !self.phone.is_connected() {
                    self.comes(talk).await;
                }
                match self.phone.next().await {
                    Some(frame) => self.takes(talk, &frame),
                    None => self.lost(),
                }
            }
            if !self.phone.is_connected() {
                self.comes(talk).await;
            }
            self.phone.say(json!({ "type": "ping" })).await;
            while self.phone.next().await.is_some_and(|frame| frame["type"] != "pong") {}
        };
        if tokio::time::timeout(PATIENCE, read).await.is_err() {
            self.wrong.push(format!("{} of {count} messages came to {}", self.phone.received.len(), self.name));
        }
    }

    async fn comes(&mut self, talk: &Talk) {
        self.phone.insist().await;
        self.told.clear();
        let unanswered: Vec<_> = self.sending.keys().copied().collect();
        for n in unanswered {
            self.sends(talk, n).await;
        }
    }

    fn lost(&mut self) {
        // From 4100 on a client has done something wrong, or is not wanted.
        if let Some((code, why)) = self.phone.closed.clone().filter(|(code, _)| (4_100..5_000).contains(code)) {
            self.wrong.push(format!("{} was closed with {code} {why}", self.name));
        }
    }

    async fn sends(&mut self, talk: &Talk, n: u64) {
        let Some(sending) = self.sending.get_mut(&n) else { return };
        sending.again = false;
        let to = &talk.pairs[sending.pair].id;
        let frame = json!({ "type": "send", "ref": self.name_of(n), "conversation_id": to, "content": self.sending[&n].content });
        self.phone.say(frame).await;
    }

    fn name_of(&self, n: u64) -> String {
        format!("{}-{n}", self.name)
    }

    /// One thing of what people do.
    async fn acts(&mut self, talk: &Talk) {
        let again: Vec<_> = self.sending.iter().filter(|(_, sending)| sending.again).map(|(n, _)| *n).collect();
        for n in again {
            self.sends(talk, n).await;
        }
        let Some(pair) = self.pairs.choose(&mut self.rng).copied() else { return };
        let (to, side) = (&talk.pairs[pair], self.side);
        match self.rng.random_range(0..100) {
            _ if talk.is_over() => {}
            0..65 if self.sending.len() < UNANSWERED => {
                let n = self.count;
                self.count += 1;
                let (own, other) = (&to.sides[side].name, &to.sides[1 - side].name);
                let content = format!("{own} says {n} to {other} on {}", self.name);
                self.sending.insert(n, Sending { pair, content, begun: talk.tick(), again: false });
                self.sends(talk, n).await;
            }
            65..73 if self.count > 0 => {
                // Something that was answered, once more: here or over HTTP.
                let n = self.rng.random_range(0..self.count);
                let Some((pair, content, id)) = self.said.get(&n).cloned() else { return };
                let body = json!({ "ref": self.name_of(n), "content": content });
                if self.rng.random() {
                    talk.pairs[pair].again[side].lock().push((body, id));
                } else {
                    let mut frame = body;
                    (frame["type"], frame["conversation_id"]) = (json!("send"), json!(talk.pairs[pair].id));
                    self.phone.say(frame).await;
                }
            }
            73..90 => {
                let Some(highest) = self.highest.get(&pair).copied() else { return };
                let late = self.rng.random_range(0..=highest);
                for up_to in [highest, late, highest] {
                    to.asks(side, up_to);
                    self.phone.say(json!({ "type": "read", "conversation_id": to.id, "up_to": up_to })).await;
                }
            }
            90..95 => self.phone.say(json!({ "type": "typing", "conversation_id": to.id })).await,
            95.. if self.goes => {
                self.phone.drop_line();
                tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..AWAY_MS))).await;
            }
            _ => {}
        }
    }

    fn takes(&mut self, talk: &Talk, frame: &Value) {
        match frame["type"].as_str().unwrap_or_default() {
            "messages" => frame["items"].as_array().into_iter().flatten().for_each(|item| self.item(talk, item)),
            "accepted" => self.answered(talk, frame),
            "error" => self.refused(frame),
            "status" => {
                let step = STEPS.iter().position(|step| frame["status"] == *step);
                let id = frame["id"].as_str().unwrap_or_default().to_owned();
                match step {
                    Some(step) if self.told.get(&id).is_none_or(|before| *before <= step) => {
                        self.told.insert(id, step);
                    }
                    _ => self.wrong.push(format!("{} was told {frame} after {:?}", self.name, self.told.get(&id))),
                }
            }
            "read" => {
                let pair = self.pairs.iter().map(|n| &talk.pairs[*n]).find(|pair| frame["conversation_id"] == pair.id);
                let asked = pair.and_then(|pair| {
                    let side = pair.sides.iter().position(|who| frame["by"] == who.name)?;
                    Some(pair.marks[side].lock().asked)
                });
                if asked.is_none() || frame["up_to"].as_u64() > asked {
                    self.wrong.push(format!("{} was told {frame}; asked was {asked:?}", self.name));
                }
            }
            _ => {}
        }
    }

    fn item(&mut self, talk: &Talk, item: &Value) {
        let pair = self.pairs.iter().find(|n| item["conversation_id"] == talk.pairs[**n].id);
        match (pair, item["seq"].as_u64()) {
            (Some(pair), Some(seq)) => {
                let highest = self.highest.entry(*pair).or_default();
                *highest = (*highest).max(seq);
            }
            _ => self.wrong.push(format!("{} was shown {item}", self.name)),
        }
    }

    /// The number of what a frame answers.
    fn number(&self, frame: &Value) -> Option<u64> {
        frame["ref"].as_str()?.rsplit_once('-').filter(|(name, _)| *name == self.name)?.1.parse().ok()
    }

    fn answered(&mut self, talk: &Talk, frame: &Value) {
        let (Some(n), Some(id)) = (self.number(frame), frame["id"].as_str().map(str::to_owned)) else {
            return self.wrong.push(format!("{} was answered {frame}", self.name));
        };
        if let Some(Sending { pair, content, begun, .. }) = self.sending.remove(&n) {
            self.said.insert(n, (pair, content.clone(), id.clone()));
            talk.accepted(pair, Said { id, content, side: self.side, begun, known: talk.tick() });
        } else if self.said.get(&n).is_none_or(|(_, _, before)| *before != id) {
            self.wrong.push(format!("{} was answered {frame} after {:?}", self.name, self.said.get(&n)));
        }
    }

    fn refused(&mut self, frame: &Value) {
        // What is refused for a time is said again; a mark is one of many.
        let for_a_time = frame["problem"]["status"].as_u64().is_some_and(|status| status == 429 || status >= 500);
        match self.number(frame) {
            _ if !for_a_time => self.wrong.push(format!("{} was refused: {frame}", self.name)),
            Some(n) => self.sending.get_mut(&n).into_iter().for_each(|sending| sending.again = true),
            None => {}
        }
    }
}
