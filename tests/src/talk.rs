//! Pairs of people who talk while something happens to servers, and the account of it afterwards: history, order, marks,
//! counts and ticks. What every test of chat through trouble has alike, whatever breaks and wherever it runs.

mod account;
mod device;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};

pub use device::Device;

use crate::harness::Person;

/// How long everything may take to settle once nobody says anything new: on a busy machine whoever takes partitions over has
/// a minute's talk to catch up with. Nothing is timed by it.
const PATIENCE: Duration = Duration::from_secs(90);

/// A message that was accepted.
#[derive(Debug, Clone)]
struct Said {
    id: String,
    content: String,
    /// Whose, by the place in [`Pair::sides`].
    side: usize,
    /// When it was first sent, and when it was known to be accepted: ticks of [`Talk::tick`].
    begun: u64,
    known: u64,
}

/// How far one side has read, as far as it said so.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    /// The highest mark that was ever sent.
    asked: u64,
    /// The highest that was answered.
    stands: u64,
}

/// Two people and their conversation.
pub struct Pair {
    /// The conversation's id.
    pub id: String,
    /// The business user and the mobile user.
    pub sides: [Person; 2],
    said: Mutex<Vec<Said>>,
    marks: [Mutex<Marks>; 2],
    /// What a side is to say once more, and the id that it has.
    again: [Mutex<Vec<(Value, String)>>; 2],
}

impl Pair {
    /// The two are to have a conversation, and both ask for it at once (P2).
    async fn open(sides: [Person; 2]) -> Self {
        let with = |n: usize| json!({ "with": sides[1 - n].name });
        let (one, other) = (with(0), with(1));
        let asked =
            tokio::join!(sides[0].insist("/v1/conversations", &one), sides[1].insist("/v1/conversations", &other));
        // 202 names the command, and the conversation beside it.
        let id = |answer: &Value| answer["conversation_id"].as_str().or(answer["id"].as_str()).map(str::to_owned);
        let ids = (id(&asked.0.1), id(&asked.1.1));
        assert!(ids.0.is_some() && ids.0 == ids.1, "a pair has one conversation: {asked:?}");
        let id = ids.0.unwrap_or_default();
        Self { id, sides, said: Mutex::default(), marks: Default::default(), again: Default::default() }
    }

    fn asks(&self, side: usize, up_to: u64) {
        let mut marks = self.marks[side].lock();
        marks.asked = marks.asked.max(up_to);
    }

    fn stands(&self, side: usize, up_to: u64) {
        let mut marks = self.marks[side].lock();
        marks.stands = marks.stands.max(up_to);
    }

    /// Marks over HTTP until it is answered.
    pub async fn mark(&self, side: usize, up_to: u64) {
        self.asks(side, up_to);
        self.sides[side].insist(&format!("/v1/conversations/{}/read", self.id), &json!({ "up_to": up_to })).await;
        self.stands(side, up_to);
    }
}

/// All of them, and what they have said.
pub struct Talk {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// About how long each writer rests after each message.
    rest: Duration,
    said: AtomicU64,
    ticks: AtomicU64,
    over: AtomicBool,
}

impl Talk {
    /// Each business user and mobile user open a conversation.
    pub async fn open(people: Vec<[Person; 2]>, rest: Duration) -> Self {
        let pairs = futures::future::join_all(people.into_iter().map(Pair::open)).await;
        Self { pairs, rest, said: AtomicU64::new(0), ticks: AtomicU64::new(0), over: AtomicBool::new(false) }
    }

    /// How many messages were accepted so far.
    pub fn said(&self) -> u64 {
        self.said.load(Ordering::SeqCst)
    }

    /// Nobody begins anything new.
    pub fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// The next moment: whatever got one before another was earlier.
    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::SeqCst)
    }

    fn accepted(&self, pair: usize, said: Said) {
        self.pairs[pair].said.lock().push(said);
        self.said.fetch_add(1, Ordering::SeqCst);
    }

    /// Everybody writes over HTTP until they are stopped.
    pub async fn write(&self) {
        let all = (0..self.pairs.len()).flat_map(|pair| [0, 1].map(|side| self.writes(pair, side)));
        futures::future::join_all(all).await;
    }

    /// One side of a pair: says something under a `ref` until it is accepted, some of it twice, and marks what is there as
    /// read, late and twice too.
    async fn writes(&self, at: usize, side: usize) {
        let pair = &self.pairs[at];
        let (who, other) = (&pair.sides[side], &pair.sides[1 - side]);
        let path = format!("/v1/conversations/{}/messages", pair.id);
        let mut n = 0;
        while !self.is_over() {
            let content = format!("{} writes {n} to {}", who.name, other.name);
            let body = json!({ "content": content, "ref": format!("http-{n}") });
            let begun = self.tick();
            let (_, answer) = who.insist(&path, &body).await;
            let id = answer["id"].as_str().expect("an id").to_owned();
            self.accepted(at, Said { id: id.clone(), content, side, begun, known: self.tick() });
            if n % 5 == 4 {
                pair.again[side].lock().push((body, id));
            }
            let again = pair.again[side].lock().pop();
            if let Some((body, id)) = again {
                let (_, answer) = who.insist(&path, &body).await;
                assert_eq!(answer["id"], id, "a repeat is the same message: {body} {answer}");
            }
            if n % 4 == 3
                && let Some(seq) = answer["seq"].as_u64()
            {
                for up_to in [seq, seq / 2, seq] {
                    pair.mark(side, up_to).await;
                }
            }
            // The load's pace, and nothing that is waited for.
            let share = ((at * 7 + side * 3) as u64 + n * 5) % 10;
            if !self.rest.is_zero() {
                tokio::time::sleep(self.rest.mul_f64(0.5 + share as f64 / 10.0)).await;
            }
            n += 1;
        }
    }
}
