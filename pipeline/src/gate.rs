//! Gates: the breakers of what the dataflow rests on (R6.2). Every call to log, history and presence passes one; a call that
//! outlives its deadline has failed, because a store that is slow is as bad as one that is away.
//!
//! Log and history cannot be done without: while their gate is shut, calls wait in front of it, so the flow stands still
//! with what is in flight (which is bounded), nothing is committed and nothing dropped. Once the time is over one call
//! tries; when it comes back well, all go on. They go in the order in which they came: a later write of a conversation that
//! came to history before an earlier one would make the earlier one look old, and its turns would be left out. Presence can be
//! done without: its callers are told at once that it is away.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use schemas::{
    Clock, Limits, Offset,
    breaker::{Breaker, Change, Pass, Rule},
    port::{Append, Log, PortError, PortResult},
};
use tokio::sync::Notify;

/// The longest sleep in front of a shut gate: a clock that is turned by hand is noticed within this time.
const LONGEST_NAP_MS: u64 = 50;

/// Whether the answer says that the store is away or has no room, and not that it refuses this call.
pub(crate) fn is_away(why: &PortError) -> bool {
    matches!(why, PortError::Unavailable(_) | PortError::Full(_) | PortError::Unknown(_))
}

/// The gates of a process, shared by its instances.
pub(crate) struct Gates {
    /// Before the history.
    pub(crate) history: Gate,
    /// Before appends to the log.
    pub(crate) log: Gate,
    /// Before presence.
    pub(crate) presence: Gate,
}

impl Gates {
    /// All open.
    pub(crate) fn new(limits: &Limits, clock: &Arc<dyn Clock>) -> Self {
        let rule = Rule::from(&limits.sink).open_for(limits.flow.store_open_ms, limits.flow.store_open_ms);
        let gate = |name, within_ms| Gate {
            name,
            rule,
            breaker: Mutex::new(Breaker::new(clock.mono())),
            moved: Notify::new(),
            line: tokio::sync::Mutex::default(),
            clock: clock.clone(),
            within: Duration::from_millis(within_ms),
        };
        Self {
            history: gate("history", limits.flow.record_ms),
            log: gate("log", limits.flow.record_ms),
            presence: gate("presence", limits.flow.locate_ms),
        }
    }
}

/// One of them.
pub(crate) struct Gate {
    name: &'static str,
    rule: Rule,
    breaker: Mutex<Breaker>,
    moved: Notify,
    /// Where calls wait their turn, first come, first served.
    line: tokio::sync::Mutex<()>,
    clock: Arc<dyn Clock>,
    within: Duration,
}

impl Gate {
    /// Calls, once the gate lets it and within the deadline. A call that met its deadline may have happened.
    pub(crate) async fn call<T>(&self, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
        let pass = self.pass().await;
        self.timed(pass, call).await
    }

    /// Calls if the gate lets it now.
    pub(crate) async fn call_now<T>(&self, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
        let pass = self.breaker.lock().admit(&self.rule, self.clock.mono());
        match pass {
            Some(pass) => self.timed(pass, call).await,
            None => {
                Err(PortError::Unavailable(format!("{} failed too often and is left alone for a moment", self.name)))
            }
        }
    }

    /// Appends; one outcome per record, in order.
    pub(crate) async fn append(&self, log: &dyn Log, records: Vec<Append>) -> Vec<PortResult<Offset>> {
        let asked = records.len();
        let pass = self.pass().await;
        let Ok(answers) = tokio::time::timeout(self.within, log.append(records)).await else {
            self.report(pass, false);
            return vec![Err(self.late()); asked];
        };
        self.report(pass, !answers.iter().any(|answer| answer.as_ref().is_err_and(is_away)));
        answers
    }

    /// Whether calls are refused now.
    pub(crate) fn is_shut(&self) -> bool {
        let breaker = self.breaker.lock();
        breaker.is_open() && breaker.wait_ms(&self.rule, self.clock.mono()) > 0
    }

    async fn timed<T>(&self, pass: Pass, call: impl Future<Output = PortResult<T>>) -> PortResult<T> {
        let answer = tokio::time::timeout(self.within, call).await.unwrap_or_else(|_| Err(self.late()));
        self.report(pass, !answer.as_ref().is_err_and(is_away));
        answer
    }

    fn late(&self) -> PortError {
        PortError::Unknown(format!("{} did not answer within {} ms", self.name, self.within.as_millis()))
    }

    async fn pass(&self) -> Pass {
        // Held no longer than until the gate lets this one: whoever is next begins its call after this one began its own.
        let _first = self.line.lock().await;
        loop {
            let moved = self.moved.notified();
            let wait_ms = {
                let (mut breaker, now) = (self.breaker.lock(), self.clock.mono());
                if let Some(pass) = breaker.admit(&self.rule, now) {
                    return pass;
                }
                breaker.wait_ms(&self.rule, now).clamp(1, LONGEST_NAP_MS)
            };
            tokio::select! {
                () = moved => {}
                () = tokio::time::sleep(Duration::from_millis(wait_ms)) => {}
            }
        }
    }

    fn report(&self, pass: Pass, ok: bool) {
        let change = self.breaker.lock().record(&self.rule, self.clock.mono(), pass, ok);
        match change {
            Change::None => {}
            Change::Opened => {
                metrics::gauge!("esh3ar_breaker_open", "breaker" => self.name).set(1.0);
                metrics::counter!("esh3ar_breaker_opened_total", "breaker" => self.name).increment(1);
                tracing::warn!(breaker = self.name, "the dataflow pauses: too many calls failed; one tries again soon");
            }
            Change::Closed => {
                metrics::gauge!("esh3ar_breaker_open", "breaker" => self.name).set(0.0);
                tracing::info!(breaker = self.name, "the dataflow goes on: calls go through again");
                self.moved.notify_waiters();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::{Timestamp, time::ManualClock};

    fn gate(clock: &Arc<ManualClock>) -> Gates {
        let mut limits = Limits::default();
        limits.flow.record_ms = 20;
        let clock: Arc<dyn Clock> = clock.clone();
        Gates::new(&limits, &clock)
    }

    async fn away() -> PortResult<()> {
        Err(PortError::Unavailable("away".into()))
    }

    #[tokio::test]
    async fn r6_2_five_failures_shut_it_one_call_tries_and_all_go_on() {
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let gates = Arc::new(gate(&clock));
        for _ in 0..5 {
            assert!(gates.history.call(away()).await.is_err());
        }
        assert!(gates.history.is_shut() && !gates.log.is_shut(), "each has a gate of its own");
        let waiting: Vec<_> = (0..10)
            .map(|n| {
                let gates = gates.clone();
                tokio::spawn(async move { gates.history.call(async move { Ok(n) }).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(waiting.iter().all(|call| !call.is_finished()), "nobody is refused: they wait");
        // A jump of the wall clock opens nothing.
        clock.jump(3_600_000);
        assert!(gates.history.is_shut());
        clock.jump(-7_200_000);
        clock.pass(1_000);
        for (n, call) in waiting.into_iter().enumerate() {
            let answer = tokio::time::timeout(Duration::from_secs(5), call).await;
            assert_eq!(answer.unwrap().unwrap(), Ok(n));
        }
    }

    #[tokio::test]
    async fn whoever_waits_in_front_of_a_shut_gate_goes_before_whoever_came_later() {
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let gates = gate(&clock);
        for _ in 0..5 {
            assert!(gates.history.call(away()).await.is_err());
        }
        let mut first = std::pin::pin!(gates.history.call(async { Ok("first") }));
        let mut second = std::pin::pin!(gates.history.call(async { Ok("second") }));
        assert!(futures::poll!(&mut first).is_pending() && futures::poll!(&mut second).is_pending());
        clock.pass(1_000);
        // Both naps are over, and the later one happens to be looked at first.
        tokio::time::sleep(Duration::from_millis(2 * LONGEST_NAP_MS)).await;
        assert!(futures::poll!(&mut second).is_pending(), "it overtook the one before it");
        assert_eq!(first.await, Ok("first"));
        assert_eq!(second.await, Ok("second"));
    }

    #[tokio::test]
    async fn r6_2_slow_counts_as_away_and_a_refusal_does_not() {
        let clock = Arc::new(ManualClock::at(Timestamp(0)));
        let gates = gate(&clock);
        for _ in 0..10 {
            let refused = async { Err::<(), _>(PortError::Fenced("late".into())) };
            assert!(matches!(gates.history.call(refused).await, Err(PortError::Fenced(_))));
        }
        assert!(!gates.history.is_shut());
        for _ in 0..5 {
            assert!(matches!(
                gates.history.call(std::future::pending::<PortResult<()>>()).await,
                Err(PortError::Unknown(_))
            ));
        }
        assert!(gates.history.is_shut());
        for _ in 0..5 {
            assert!(gates.presence.call_now(away()).await.is_err());
        }
        let never = async { Ok(()) };
        assert!(matches!(gates.presence.call_now(never).await, Err(PortError::Unavailable(_))), "told at once");
    }
}
