//! The desk: what was asked and is not answered, when it is asked again, and on the other side what was answered already.
//! Pure but for the one who waits; time is an argument.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use schemas::{
    Millis, SessionId, UserId,
    limits::RedisLimits,
    port::{Hint, Landing, PortError, PortResult},
};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::frame::Part;

/// What is put to a node.
#[derive(Clone)]
pub(super) enum Told {
    Hints(Arc<Vec<Hint>>),
    Supersede(UserId, SessionId),
}

impl Told {
    fn part(&self, ask: u64) -> Part {
        match self {
            Self::Hints(hints) => Part::Hints { ask, hints: hints.clone() },
            Self::Supersede(user, session) => Part::Supersede { ask, user: user.clone(), session: *session },
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The node's landings.
    Landed(Vec<Landing>),
    /// The node did it.
    Done,
    /// Nobody listens on its channel.
    Nobody,
    /// The carrier is away.
    Away,
}

struct Open {
    channel: String,
    told: Told,
    tell: oneshot::Sender<Answer>,
    /// When it is sent again, and how long is waited after that, ms.
    due: Millis,
    wait_ms: u64,
}

type Questions = Arc<Mutex<HashMap<u64, Open>>>;

/// Questions that wait for an answer.
pub(super) struct Desk {
    open: Questions,
    next: AtomicU64,
    most: usize,
    resend_ms: u64,
}

/// Waits for one answer; dropped, it is not waited for any more.
pub(super) struct Waiting {
    ask: u64,
    open: Questions,
    told: oneshot::Receiver<Answer>,
}

impl Waiting {
    pub(super) async fn answered(mut self) -> PortResult<Answer> {
        (&mut self.told).await.map_err(|_| PortError::Unknown("nobody answers any more".to_owned()))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.open.lock().remove(&self.ask);
    }
}

impl Desk {
    pub(super) fn new(limits: &RedisLimits) -> Self {
        let (most, resend_ms) = (limits.asks, limits.resend_ms.max(1));
        Self { open: Questions::default(), next: AtomicU64::new(1), most, resend_ms }
    }

    /// Notes a question; the part is what puts it.
    pub(super) fn ask(&self, channel: &str, told: Told, now: Millis) -> PortResult<(Waiting, Part)> {
        let (tell, answer) = oneshot::channel();
        let ask = self.next.fetch_add(1, Ordering::Relaxed);
        let part = told.part(ask);
        let (wait_ms, due) = (self.resend_ms, now.plus(self.resend_ms));
        let mut open = self.open.lock();
        if open.len() >= self.most {
            return Err(PortError::Unavailable(format!(
                "{} deliveries wait for answers, which is the most",
                self.most
            )));
        }
        open.insert(ask, Open { channel: channel.to_owned(), told, tell, due, wait_ms });
        Ok((Waiting { ask, open: self.open.clone(), told: answer }, part))
    }

    /// Answers a question; one that nobody waits for any more is passed over.
    pub(super) fn answer(&self, ask: u64, answer: Answer) {
        let open = self.open.lock().remove(&ask);
        if let Some(open) = open {
            // Whoever asked may have gone.
            let _ = open.tell.send(answer);
        }
    }

    pub(super) fn answer_all(&self, asks: &[u64], answer: impl Fn() -> Answer) {
        asks.iter().for_each(|ask| self.answer(*ask, answer()));
    }

    /// What is to be sent again now, in the order in which it was asked.
    pub(super) fn due(&self, now: Millis) -> Vec<(String, Part)> {
        let mut open = self.open.lock();
        let mut due: Vec<_> = open.iter_mut().filter(|(_, open)| open.due <= now).collect();
        due.sort_unstable_by_key(|(ask, _)| **ask);
        let again = due.into_iter().map(|(ask, open)| {
            open.wait_ms = open.wait_ms.saturating_mul(2);
            open.due = now.plus(open.wait_ms);
            (open.channel.clone(), open.told.part(*ask))
        });
        again.collect()
    }
}

/// Answers that were given, the oldest forgotten first.
pub(super) struct Met {
    given: HashMap<(Uuid, u64), Vec<Landing>>,
    order: VecDeque<(Uuid, u64)>,
    most: usize,
}

impl Met {
    pub(super) fn new(most: usize) -> Self {
        Self { given: HashMap::new(), order: VecDeque::new(), most }
    }

    pub(super) fn get(&self, from: Uuid, ask: u64) -> Option<Vec<Landing>> {
        self.given.get(&(from, ask)).cloned()
    }

    pub(super) fn put(&mut self, from: Uuid, ask: u64, landings: Vec<Landing>) {
        if self.order.len() >= self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.given.remove(&oldest);
        }
        if self.given.insert((from, ask), landings).is_none() {
            self.order.push_back((from, ask));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        Told::Supersede("acme/business:sara".parse().unwrap(), SessionId(Uuid::nil()))
    }

    fn limits() -> RedisLimits {
        RedisLimits { asks: 3, resend_ms: 100, ..RedisLimits::default() }
    }

    #[tokio::test]
    async fn a_question_is_put_again_until_it_is_answered_or_nobody_waits() {
        let desk = Desk::new(&limits());
        let (waiting, part) = desk.ask("n", told(), Millis(0)).unwrap();
        let (gone, _) = desk.ask("n", told(), Millis(0)).unwrap();
        drop(gone);
        assert!(desk.due(Millis(99)).is_empty());
        assert_eq!(desk.due(Millis(100)).len(), 1);
        // Twice as long after each time.
        assert!(desk.due(Millis(299)).is_empty());
        assert_eq!(desk.due(Millis(300)).len(), 1);
        desk.answer(part.asks().unwrap(), Answer::Done);
        desk.answer(part.asks().unwrap(), Answer::Nobody);
        assert_eq!(waiting.answered().await, Ok(Answer::Done));
        assert!(desk.due(Millis(9_999)).is_empty());
    }

    #[test]
    fn questions_are_bounded_and_a_place_is_free_again() {
        let desk = Desk::new(&limits());
        let mut waiting: Vec<_> = (0..3).map(|_| desk.ask("n", told(), Millis(0)).unwrap()).collect();
        assert!(matches!(desk.ask("n", told(), Millis(0)), Err(PortError::Unavailable(_))));
        waiting.pop();
        assert!(desk.ask("n", told(), Millis(0)).is_ok());
    }

    #[test]
    fn the_oldest_answers_are_forgotten_first() {
        let mut met = Met::new(2);
        let from = Uuid::nil();
        for ask in 0..3 {
            met.put(from, ask, vec![Landing::Taken]);
        }
        assert_eq!(met.get(from, 0), None);
        assert!(met.get(from, 1).is_some() && met.get(from, 2).is_some());
        assert_eq!((met.given.len(), met.order.len()), (2, 2));
    }
}
