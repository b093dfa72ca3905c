//! The breaker: who failed too often is left alone for a while, so that its trouble stays its own (R6.2, invariant 12).
//! Five failures in a row, or half of a window's calls, open it for its time; then one call may try. Pure: time is an
//! argument, nothing is called from here. Used by who calls: `sinks` for nodes and notices, `pipeline` for what it rests on.

use crate::{limits::SinkLimits, time::Millis};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Failures in a row that open it.
    pub failures: u32,
    /// Percent of a window's calls whose failure opens it.
    pub percent: u32,
    /// Calls of a window below which the share says nothing.
    pub calls: u32,
    /// Length of a window, ms.
    pub window_ms: u64,
    /// How long it refuses, ms.
    pub open_ms: u64,
    /// How long a probe may stay unanswered before another is let through, ms.
    pub probe_ms: u64,
}

impl Rule {
    /// That of who is left alone for another time, and may take so long to answer a probe, ms.
    pub fn open_for(self, open_ms: u64, probe_ms: u64) -> Self {
        let open_ms = open_ms.max(1);
        Self { open_ms, probe_ms: probe_ms.max(open_ms), ..self }
    }
}

impl From<&SinkLimits> for Rule {
    fn from(limits: &SinkLimits) -> Self {
        Self {
            failures: limits.breaker_failures.max(1),
            percent: limits.breaker_percent,
            calls: limits.breaker_calls.max(1),
            window_ms: limits.breaker_window_ms,
            open_ms: limits.breaker_open_ms,
            probe_ms: limits.breaker_open_ms,
        }
    }
}

/// Leave to make one call. It belongs to the state it was given in: an answer that comes after the breaker has moved on
/// tells of a world that is gone, and changes nothing. Only a probe that was answered well, however late, tells that calls are
/// answered again: who is slow, and is asked anew meanwhile, would else never be let go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass(u64);

/// How the breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Calls go through and are counted.
    Closed,
    /// Calls are refused until the time is over.
    Open { since: Millis },
    /// One call is trying; the others are refused.
    Probing { since: Millis },
}

/// What recording an answer changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anyone need hear of.
    None,
    /// It opened.
    Opened,
    /// It closed again.
    Closed,
}

/// One breaker.
#[derive(Debug, Clone)]
pub struct Breaker {
    state: State,
    /// Grows with every change of state; what a [`Pass`] remembers.
    generation: u64,
    /// That of the last change from closed to open: passes given since are of probes.
    opened: u64,
    in_a_row: u32,
    window: Millis,
    calls: u32,
    failed: u32,
}

impl Breaker {
    /// A closed one.
    pub fn new(now: Millis) -> Self {
        Self { state: State::Closed, generation: 0, opened: 0, in_a_row: 0, window: now, calls: 0, failed: 0 }
    }

    /// Asks for leave to call. Whoever gets it reports with [`Breaker::record`]; a probe that never reports is replaced
    /// after `probe_ms`.
    pub fn admit(&mut self, rule: &Rule, now: Millis) -> Option<Pass> {
        if self.wait_ms(rule, now) > 0 {
            return None;
        }
        if self.is_open() {
            self.become_state(State::Probing { since: now });
        }
        Some(Pass(self.generation))
    }

    /// Reports how an admitted call went.
    pub fn record(&mut self, rule: &Rule, now: Millis, pass: Pass, ok: bool) -> Change {
        if ok && self.is_open() && pass.0 > self.opened {
            *self = Self { generation: self.generation + 1, ..Self::new(now) };
            return Change::Closed;
        }
        if pass != Pass(self.generation) {
            return Change::None;
        }
        match self.state {
            // A good answer has closed it above.
            State::Probing { .. } => {
                self.become_state(State::Open { since: now });
                Change::None
            }
            State::Closed => self.count(rule, now, ok),
            // Open gives no passes of its own generation.
            State::Open { .. } => Change::None,
        }
    }

    /// How long until a call may be admitted, ms; zero: now.
    pub fn wait_ms(&self, rule: &Rule, now: Millis) -> u64 {
        match self.state {
            State::Closed => 0,
            State::Open { since } => rule.open_ms.saturating_sub(now.since(since)),
            State::Probing { since } => rule.probe_ms.saturating_sub(now.since(since)),
        }
    }

    /// Whether it remembers nothing that a new one would not know: it may be forgotten.
    pub fn is_idle(&self, rule: &Rule, now: Millis) -> bool {
        self.state == State::Closed
            && self.in_a_row == 0
            && (self.failed == 0 || now.since(self.window) >= rule.window_ms)
    }

    fn count(&mut self, rule: &Rule, now: Millis, ok: bool) -> Change {
        if now.since(self.window) >= rule.window_ms {
            (self.window, self.calls, self.failed) = (now, 0, 0);
        }
        self.calls = self.calls.saturating_add(1);
        if ok {
            self.in_a_row = 0;
            return Change::None;
        }
        self.failed = self.failed.saturating_add(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        let share = u64::from(self.failed) * 100 >= u64::from(self.calls) * u64::from(rule.percent);
        if self.in_a_row >= rule.failures || (self.calls >= rule.calls && share) {
            self.become_state(State::Open { since: now });
            self.opened = self.generation;
            return Change::Opened;
        }
        Change::None
    }

    /// Whether calls are refused, or one is trying for all.
    pub fn is_open(&self) -> bool {
        self.state != State::Closed
    }

    fn become_state(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RULE: Rule =
        Rule { failures: 5, percent: 50, calls: 20, window_ms: 10_000, open_ms: 30_000, probe_ms: 30_000 };

    /// Calls at these times with these answers; says after each whether the call was let through.
    fn played(calls: &[(u64, bool)]) -> Vec<bool> {
        let mut breaker = Breaker::new(Millis(0));
        calls
            .iter()
            .map(|(at, ok)| {
                let pass = breaker.admit(&RULE, Millis(*at));
                if let Some(pass) = pass {
                    breaker.record(&RULE, Millis(*at), pass, *ok);
                }
                pass.is_some()
            })
            .collect()
    }

    #[test]
    fn r6_2_the_table() {
        let fails = |from: u64, n: u64| (from..from + n).map(|t| (t, false)).collect::<Vec<_>>();
        type Row = (&'static str, Vec<(u64, bool)>, bool);
        let table: &[Row] = &[
            ("four in a row leave it closed", [fails(0, 4), vec![(9, true)]].concat(), true),
            ("five in a row open it", [fails(0, 5), vec![(9, true)]].concat(), false),
            (
                "a success between starts the row again",
                [fails(0, 4), vec![(5, true)], fails(6, 4), vec![(11, true)]].concat(),
                true,
            ),
            ("just before 30 s it still refuses", [fails(0, 5), vec![(30_003, true)]].concat(), false),
            ("after 30 s one may try", [fails(0, 5), vec![(30_004, true)]].concat(), true),
            ("a good probe closes it", [fails(0, 5), vec![(30_004, true), (30_005, true)]].concat(), true),
            ("a bad probe opens it again", [fails(0, 5), vec![(30_004, false), (30_005, true)]].concat(), false),
            (
                "half of twenty calls open it though no five were in a row",
                [(0..20).map(|t| (t, t % 2 == 0)).collect::<Vec<_>>(), vec![(21, true)]].concat(),
                false,
            ),
            (
                "half of fewer calls says nothing",
                [(0..18).map(|t| (t, t % 2 == 0)).collect::<Vec<_>>(), vec![(21, true)]].concat(),
                true,
            ),
            (
                "failures of an earlier window are forgotten",
                [
                    (0..19).map(|t| (t, t % 2 == 1)).collect::<Vec<_>>(),
                    (0..9).map(|t| (20_000 + t, t % 2 == 0)).collect(),
                ]
                .concat(),
                true,
            ),
        ];
        for (what, calls, last) in table {
            assert_eq!(played(calls).last(), Some(last), "{what}");
        }
    }

    #[test]
    fn a_probe_that_never_answers_is_replaced() {
        let mut breaker = Breaker::new(Millis(0));
        for t in 0..5 {
            let pass = breaker.admit(&RULE, Millis(t)).unwrap();
            breaker.record(&RULE, Millis(t), pass, false);
        }
        let lost = breaker.admit(&RULE, Millis(40_000)).unwrap();
        assert_eq!(breaker.admit(&RULE, Millis(40_001)), None);
        let second = breaker.admit(&RULE, Millis(70_000)).unwrap();
        // The first probe's answer comes at last: it is the second that counts.
        assert_eq!(breaker.record(&RULE, Millis(70_001), lost, false), Change::None);
        assert_eq!(breaker.record(&RULE, Millis(70_002), second, true), Change::Closed);
    }

    #[test]
    fn a_probe_that_is_answered_well_closes_it_however_late() {
        let mut breaker = Breaker::new(Millis(0));
        let before = breaker.admit(&RULE, Millis(0)).unwrap();
        for t in 0..5 {
            let pass = breaker.admit(&RULE, Millis(t)).unwrap();
            breaker.record(&RULE, Millis(t), pass, false);
        }
        // Whoever answers takes longer than a probe is waited for.
        let slow = breaker.admit(&RULE, Millis(30_004)).unwrap();
        let next = breaker.admit(&RULE, Millis(60_004)).unwrap();
        assert_eq!(breaker.record(&RULE, Millis(61_000), before, true), Change::None, "that was before it opened");
        assert_eq!(breaker.record(&RULE, Millis(61_001), slow, true), Change::Closed);
        assert_eq!(breaker.record(&RULE, Millis(61_002), next, false), Change::None, "of a world that is gone");
        assert!(!breaker.is_open());
    }

    proptest! {
        /// Whatever the calls, their answers and their delays: an opened breaker lets nobody through for 30 s, and then one
        /// at a time until one came back well.
        #[test]
        fn r6_2_an_open_breaker_refuses_for_its_time_and_then_lets_one_try(
            steps in proptest::collection::vec((0u64..8_000, any::<bool>(), 0usize..4), 1..300),
        ) {
            let (mut breaker, mut now) = (Breaker::new(Millis(0)), Millis(0));
            // Each with the opening that it is a probe of.
            let (mut out, mut refuses_until) = (Vec::<(Pass, bool, Option<u32>)>::new(), None::<Millis>);
            let mut openings = 0;
            for (later, ok, answer) in steps {
                now = now.plus(later);
                match breaker.admit(&RULE, now) {
                    Some(pass) => {
                        prop_assert!(refuses_until.is_none_or(|until| now >= until));
                        if let Some(until) = &mut refuses_until { *until = now.plus(RULE.open_ms); }
                        out.push((pass, ok, refuses_until.map(|_| openings)));
                    }
                    None => prop_assert!(refuses_until.is_some_and(|until| now < until)),
                }
                for _ in 0..answer.min(out.len()) {
                    let (pass, ok, probe) = out.remove(answer % out.len());
                    let probing = refuses_until.is_some();
                    let closes = ok && probing && probe == Some(openings);
                    match breaker.record(&RULE, now, pass, ok) {
                        Change::Opened => {
                            prop_assert!(!ok && !probing);
                            (refuses_until, openings) = (Some(now.plus(RULE.open_ms)), openings + 1);
                        }
                        Change::Closed => { prop_assert!(closes); refuses_until = None; }
                        Change::None if closes => prop_assert!(false, "a good probe closes it"),
                        // A bad probe starts the time anew: from its answer.
                        Change::None if probing && breaker.wait_ms(&RULE, now) == RULE.open_ms => refuses_until = Some(now.plus(RULE.open_ms)),
                        Change::None => {}
                    }
                }
            }
        }

        #[test]
        fn who_never_fails_is_never_refused(times in proptest::collection::vec(0u64..1_000_000, 1..200)) {
            let calls: Vec<_> = times.into_iter().map(|t| (t, true)).collect();
            prop_assert!(played(&calls).into_iter().all(|let_through| let_through));
        }
    }
}
