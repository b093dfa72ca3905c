//! What must have come of a talk: everything that was accepted stands once, both sides read the same in one order that agrees
//! with what was known when, and marks, counts and ticks follow from each other.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::Value;

use super::{Device, PATIENCE, Pair, Talk};
use crate::harness::Person;

/// Faults that are told.
const TOLD: usize = 40;
/// Of the messages, one in so many is asked for by its id.
const SAMPLE: usize = 37;

/// A row as it must be the same for everybody.
type Shape<'a> = (&'a str, u64, &'a str, &'a str);

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

fn number(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or(u64::MAX)
}

fn shape(row: &Value) -> Shape<'_> {
    (text(row, "id"), number(row, "seq"), text(row, "content"), text(row, "from"))
}

/// The first place where two readings differ.
fn difference<'a>(one: &'a [Value], other: &'a [Value]) -> Option<(usize, Option<Shape<'a>>, Option<Shape<'a>>)> {
    let at = |rows: &'a [Value], n: usize| rows.get(n).map(shape);
    (0..one.len().max(other.len())).map(|n| (n, at(one, n), at(other, n))).find(|(_, one, other)| one != other)
}

impl Talk {
    /// Waits until everything is as it must be, or for as long as that may take: every conversation's rows, oldest first, and
    /// what is wrong, in words. `reached`: every message has reached a device that acknowledged it.
    pub async fn until_right(&self, reached: bool) -> (Vec<Vec<Value>>, Vec<String>) {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let (threads, wrong) = self.account(reached).await;
                if wrong.is_empty() {
                    return threads;
                }
                // What was accepted a moment ago may still be on its way.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        match waited.await {
            Ok(threads) => (threads, Vec::new()),
            Err(_) => {
                let (threads, mut wrong) = self.account(reached).await;
                wrong.truncate(TOLD);
                (threads, wrong)
            }
        }
    }

    /// Every conversation's rows as the business user reads them, and what is wrong.
    async fn account(&self, reached: bool) -> (Vec<Vec<Value>>, Vec<String>) {
        let (mut threads, mut wrong, mut unread) = (Vec::new(), Vec::new(), BTreeMap::new());
        for pair in &self.pairs {
            let thread = pair.read(&mut wrong).await;
            pair.said_once(&thread, &mut wrong);
            let rows = [pair.sides[0].row(&pair.id).await, pair.sides[1].row(&pair.id).await];
            pair.counted(&thread, &rows, reached, &mut wrong);
            for (who, row) in pair.sides.iter().zip(rows) {
                let (_, of) = unread.entry(who.name.clone()).or_insert_with(|| (who, HashMap::new()));
                of.insert(pair.id.clone(), number(&row, "unread"));
            }
            threads.push(thread);
        }
        for (who, rows) in unread.values() {
            badge(who, rows, &mut wrong).await;
        }
        (threads, wrong)
    }

    /// Whether a device saw every message of its user's conversations once and in their order; what is wrong, in words.
    pub fn seen(&self, device: &Device, threads: &[Vec<Value>]) -> Vec<String> {
        let mut wrong = device.wrong.clone();
        if device.phone.repeats_in_session > 0 {
            wrong.push(format!("{} were sent twice on one connection", device.phone.repeats_in_session));
        }
        let mut came = HashMap::<&str, Vec<Value>>::new();
        for item in &device.phone.items {
            came.entry(text(item, "conversation_id")).or_default().push(item.clone());
        }
        for pair in &device.pairs {
            let rows = came.remove(self.pairs[*pair].id.as_str()).unwrap_or_default();
            if let Some((n, item, row)) = difference(&rows, &threads[*pair]) {
                wrong.push(format!("{}: item {n} was {item:?} and stands as {row:?}", self.pairs[*pair].id));
            }
        }
        wrong.extend(came.keys().map(|id| format!("items of {id}, which is another's")));
        wrong.into_iter().map(|why| format!("{}: {why}", device.who)).collect()
    }

    /// How many messages the conversations of a device's user have.
    pub fn due(&self, device: &Device) -> usize {
        device.pairs.iter().map(|pair| self.pairs[*pair].said.lock().len()).sum()
    }
}

impl Pair {
    /// The history, which is the same for both sides, in either direction and by pages of any size.
    async fn read(&self, wrong: &mut Vec<String>) -> Vec<Value> {
        let [business, mobile] = &self.sides;
        let thread = business.thread(&self.id, "oldest", 500).await;
        let as_mobile = mobile.thread(&self.id, "oldest", 70).await;
        let mut backwards = mobile.thread(&self.id, "newest", 33).await;
        backwards.reverse();
        for other in [&as_mobile, &backwards] {
            if let Some((n, one, other)) = difference(&thread, other) {
                wrong.push(format!("{}: row {n} is {one:?} for one and {other:?} for the other", self.id));
            }
        }
        for row in thread.iter().step_by(SAMPLE) {
            let alone = mobile.get(&format!("/v1/messages/{}", text(row, "id"))).await;
            if (&alone["status"], &alone["content"], &alone["seq"]) != (&row["status"], &row["content"], &row["seq"]) {
                wrong.push(format!("{}: by its id it is {alone}, and in its thread {row}", self.id));
            }
        }
        thread
    }

    /// What was accepted is there once, under its id and in an order that agrees with what was known when; and nothing else is.
    fn said_once(&self, thread: &[Value], wrong: &mut Vec<String>) {
        let said = self.said.lock();
        let mut places = HashMap::<(&str, &str), Vec<usize>>::new();
        for (n, row) in thread.iter().enumerate() {
            places.entry((text(row, "id"), text(row, "content"))).or_default().push(n);
            if number(row, "seq") != n as u64 + 1 {
                wrong.push(format!("{}: number {} stands at place {}", self.id, row["seq"], n + 1));
            }
        }
        let mut order = Vec::new();
        for one in said.iter() {
            match places.remove(&(one.id.as_str(), one.content.as_str())).as_deref() {
                Some([n]) if thread[*n]["from"] == self.sides[one.side].name => order.push((*n, one)),
                found => wrong.push(format!("{}: {one:?} stands at {found:?} of {}", self.id, thread.len())),
            }
        }
        wrong.extend(places.keys().map(|(id, content)| format!("{}: nobody said {content:?} ({id})", self.id)));
        // Who began to say something after something else was known to be accepted, said it later.
        order.sort_unstable_by_key(|(n, _)| *n);
        let mut latest: Option<(usize, &super::Said)> = None;
        for (n, one) in order {
            if let Some((before, other)) = latest.filter(|(_, other)| one.known < other.begun) {
                wrong.push(format!("{}: {one:?} stands at {n}, after {other:?} at {before}", self.id));
            }
            latest = latest.filter(|(_, other)| other.begun >= one.begun).or(Some((n, one)));
        }
    }

    /// Marks are those that were asked for, and counts and ticks follow from them.
    fn counted(&self, thread: &[Value], rows: &[Value; 2], reached: bool, wrong: &mut Vec<String>) {
        for side in [0, 1] {
            let (row, reader, marks) = (&rows[side], &self.sides[side].name, *self.marks[side].lock());
            let read = number(row, "read_seq");
            if !(marks.stands..=marks.asked).contains(&read) || rows[1 - side]["other_read_seq"] != read {
                wrong.push(format!("{} of {reader} was marked {marks:?}: {row}, and {}", self.id, rows[1 - side]));
            }
            let to_read = thread.iter().filter(|m| m["from"] != **reader && number(m, "seq") > read).count();
            if row["unread"] != to_read || row["last_seq"] != thread.len() {
                wrong.push(format!("{}: {reader} has {to_read} to read of {}: {row}", self.id, thread.len()));
            }
            for message in thread.iter().filter(|m| m["from"] != **reader) {
                let is_read = number(message, "seq") <= read;
                let status = text(message, "status");
                if (status == "read") != is_read || (reached && !is_read && status != "delivered") {
                    wrong.push(format!("{reader} has read up to {read}: {message}"));
                }
            }
        }
    }
}

/// The badge of one person says the sum, and its list what each conversation says.
async fn badge(who: &Person, rows: &HashMap<String, u64>, wrong: &mut Vec<String>) {
    let sum: u64 = rows.values().sum();
    let badge = who.get("/v1/unread").await;
    if badge["chat"] != sum || badge["total"] != sum {
        wrong.push(format!("{} has {sum} to read, and the badge says {badge}", who.name));
    }
    let list = who.pages("/v1/conversations?limit=7").await;
    let listed: HashMap<_, _> = list.iter().map(|row| (text(row, "id").to_owned(), number(row, "unread"))).collect();
    if listed != *rows || list.len() != rows.len() {
        wrong.push(format!("{} has {rows:?}, and the list says {listed:?} in {} rows", who.name, list.len()));
    }
    let times: Vec<_> = list.iter().map(|row| text(row, "last_at")).collect();
    if !times.is_sorted_by(|one, other| one >= other) {
        wrong.push(format!("the list of {} is not in its order: {times:?}", who.name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Said, *};

    /// Four messages, by turns, each said when the one before was known.
    fn talked() -> (Pair, Vec<Value>, [Value; 2]) {
        let sides = ["business:sara", "+962790000001"].map(|name| Person::at("http://nowhere", name, String::new()));
        let pair = Pair {
            id: "c".to_owned(),
            sides,
            said: Default::default(),
            marks: Default::default(),
            again: Default::default(),
        };
        let mut thread = Vec::new();
        for n in 0..4_u64 {
            let side = n as usize % 2;
            let (id, content) = (format!("id-{n}"), format!("says {n}"));
            let status = if n < 2 { "read" } else { "delivered" };
            thread.push(
                json!({ "id": id, "seq": n + 1, "content": content, "from": pair.sides[side].name, "status": status }),
            );
            pair.said.lock().push(Said { id, content, side, begun: 2 * n, known: 2 * n + 1 });
        }
        for side in [0, 1] {
            pair.asks(side, 2);
            pair.stands(side, 2);
        }
        let row = json!({ "read_seq": 2, "other_read_seq": 2, "unread": 1, "last_seq": 4 });
        (pair, thread, [row.clone(), row])
    }

    fn wrong(change: impl FnOnce(&mut Vec<Value>, &mut [Value; 2])) -> Vec<String> {
        let (pair, mut thread, mut rows) = talked();
        change(&mut thread, &mut rows);
        let mut wrong = Vec::new();
        pair.said_once(&thread, &mut wrong);
        pair.counted(&thread, &rows, true, &mut wrong);
        wrong
    }

    #[test]
    fn what_is_right_is_found_right() {
        assert_eq!(wrong(|_, _| {}), Vec::<String>::new());
    }

    #[test]
    fn every_single_fault_is_found() {
        type Change = fn(&mut Vec<Value>, &mut [Value; 2]);
        let numbered = |thread: &mut Vec<Value>| {
            for (n, row) in thread.iter_mut().enumerate() {
                row["seq"] = json!(n + 1);
            }
        };
        let table: [(&str, Change); 9] = [
            ("one is lost", |thread, _| drop(thread.remove(3))),
            ("one stands twice", |thread, _| thread.push(thread[3].clone())),
            ("one nobody said", |thread, _| thread[3]["content"] = json!("else")),
            ("one is of the other side", |thread, _| thread[3]["from"] = json!("business:sara")),
            ("a number is missing", |thread, _| thread[3]["seq"] = json!(5)),
            ("a mark is lost", |_, rows| rows[0]["read_seq"] = json!(1)),
            ("the other side is not told of a mark", |_, rows| rows[1]["other_read_seq"] = json!(0)),
            ("a count is wrong", |_, rows| rows[1]["unread"] = json!(0)),
            ("a tick is missing", |thread, _| thread[3]["status"] = json!("sent")),
        ];
        for (what, change) in table {
            assert!(!wrong(change).is_empty(), "{what}");
        }
        for (one, other) in [(0, 1), (1, 2), (2, 3), (0, 3)] {
            let swapped = wrong(|thread, _| {
                thread.swap(one, other);
                numbered(thread);
            });
            assert!(swapped.iter().any(|why| why.contains(", after Said")), "{one} and {other}: {swapped:?}");
        }
    }
}
