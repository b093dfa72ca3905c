//! The room of the lanes: how much waits in each, who holds it, and whether more is taken (R5.4, rule 12).
//!
//! What waits is appended minus recorded: the ends of a lane's partitions less what the pipeline has committed, asked of the
//! log; between two askings what is accepted here is added. Every process with a door asks about every partition, so it asks
//! seldom while there is much room. The rules are pure; `watch` does the asking.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{future::try_join_all, try_join};
use parking_lot::Mutex;
use schemas::{
    Code, Lane, Partition, Priority, Problem, Tenant, Topic, TopicPartition,
    limits::DoorLimits,
    port::{Group, Log, PortResult},
};

/// The group whose commits say what is recorded.
pub const PIPELINE: Group = Group("esh3ar.pipeline");

/// So many times seldomer the log is asked while all lanes have much room.
const ROOMY: u32 = 5;

/// What waits in one lane.
#[derive(Debug, Default)]
struct Room {
    waiting: u64,
    /// Who holds how much of it, as far as it was accepted here. What a restart left belongs to nobody known.
    held: HashMap<Tenant, u64>,
}

/// What waits in all three.
pub struct Lanes {
    rooms: [Mutex<Room>; 3],
    slow: u64,
    full: u64,
    /// A lane no longer has much room.
    filling: tokio::sync::Notify,
}

fn index(lane: Lane) -> usize {
    usize::from(lane.number())
}

impl Lanes {
    /// With nothing waiting.
    pub fn new(limits: &DoorLimits) -> Self {
        let (slow, full) = (limits.lane_slow, limits.lane_full.max(1));
        Self { rooms: Default::default(), slow, full, filling: Default::default() }
    }

    /// What waits, most urgent lane first.
    pub fn waiting(&self) -> [u64; 3] {
        std::array::from_fn(|i| self.rooms[i].lock().waiting)
    }

    /// Messages that broadcasts may add to a lane now: its free room below half of where it is slowed.
    pub fn free(&self, lane: Lane) -> u64 {
        (self.slow / 2).saturating_sub(self.rooms[index(lane)].lock().waiting)
    }

    /// Joins as many of `count` messages of a tenant to a lane as it takes; says how many, and why not the rest.
    pub fn join(&self, lane: Lane, tenant: &Tenant, count: u64) -> (u64, Option<Problem>) {
        let mut room = self.rooms[index(lane)].lock();
        let taken = self.takes(&room, tenant).min(count);
        self.put(&mut room, tenant, taken);
        let refused = if taken < count { self.judge(lane, &room, tenant).err() } else { None };
        (taken, refused)
    }

    /// Whether one more message of a tenant would be taken.
    pub fn check(&self, lane: Lane, tenant: &Tenant) -> Result<(), Problem> {
        self.judge(lane, &self.rooms[index(lane)].lock(), tenant)
    }

    /// Adds without asking: what the expander appends into the free room it was given.
    pub fn add(&self, lane: Lane, tenant: &Tenant, count: u64) {
        self.put(&mut self.rooms[index(lane)].lock(), tenant, count);
    }

    fn put(&self, room: &mut Room, tenant: &Tenant, count: u64) {
        let before = room.waiting;
        room.add(tenant, count);
        if self.is_roomy(before) && !self.is_roomy(room.waiting) {
            self.filling.notify_one();
        }
    }

    /// How much longer than that the log need not be asked, unless a lane fills meanwhile.
    fn more_rest(&self, every: Duration) -> Duration {
        let all = self.waiting().into_iter().all(|waiting| self.is_roomy(waiting));
        every * if all { ROOMY - 1 } else { 0 }
    }

    /// Whether a lane where so much waits has much room: what all doors take in until the log is asked again is no matter then.
    fn is_roomy(&self, waiting: u64) -> bool {
        waiting < self.slow / 4
    }

    /// What joined and was then not appended.
    pub fn leave(&self, lane: Lane, tenant: &Tenant, count: u64) {
        let mut room = self.rooms[index(lane)].lock();
        room.waiting = room.waiting.saturating_sub(count);
        if let Some(held) = room.held.get_mut(tenant) {
            *held = held.saturating_sub(count);
        }
    }

    /// Takes what the log says. What left is taken from all tenants alike: the log keeps no count of theirs.
    pub fn settle(&self, lane: Lane, waiting: u64) {
        let mut room = self.rooms[index(lane)].lock();
        let known: u64 = room.held.values().sum();
        if known > waiting {
            for held in room.held.values_mut() {
                *held = (u128::from(*held) * u128::from(waiting) / u128::from(known)) as u64;
            }
        }
        room.held.retain(|_, held| *held > 0);
        room.waiting = waiting;
    }

    /// How many more messages of a tenant [`Lanes::judge`] would let in, one after the other.
    fn takes(&self, room: &Room, tenant: &Tenant) -> u64 {
        let (held, share) = room.share(tenant);
        let until_slow = self.slow.saturating_sub(room.waiting);
        let own_share = self.slow.div_ceil(2).saturating_sub(share);
        let until_full = self.full.saturating_sub(room.waiting);
        until_slow.max(own_share).min(until_full).min(self.full.div_ceil(2).saturating_sub(held))
    }

    fn judge(&self, lane: Lane, room: &Room, tenant: &Tenant) -> Result<(), Problem> {
        let (waiting, word) = (room.waiting, lane.word());
        if waiting >= self.full {
            let detail = format!("{waiting} messages wait in the {word} lane, the most is {}", self.full);
            return Err(Problem::new(Code::LaneFull, detail).retry_after_ms(self.patience(waiting)));
        }
        let (held, share) = room.share(tenant);
        if held >= self.full.div_ceil(2) {
            let detail = format!("{held} of your messages wait in the {word} lane, half of its room");
            return Err(Problem::new(Code::LaneFull, detail).retry_after_ms(self.patience(waiting)));
        }
        // Past the slow mark, who holds less than half of it still gets in: one tenant's backlog does not slow the others. What
        // nobody is known to hold counts against everyone.
        if waiting >= self.slow && share >= self.slow.div_ceil(2) {
            let detail = format!("{waiting} messages wait in the {word} lane; from {} on it is slowed", self.slow);
            return Err(Problem::new(Code::LaneSlow, detail).retry_after_ms(self.patience(waiting)));
        }
        Ok(())
    }

    /// How long to stay away: 1 s at the slow mark, growing to 10 s where the lane is full.
    fn patience(&self, waiting: u64) -> u64 {
        let over = waiting.saturating_sub(self.slow).min(self.full);
        1_000 + 9_000 * over / self.full.saturating_sub(self.slow).max(1).max(over)
    }
}

impl Room {
    /// What a tenant is known to hold, and that with what nobody is known to hold.
    fn share(&self, tenant: &Tenant) -> (u64, u64) {
        let held = self.held.get(tenant).copied().unwrap_or(0);
        let known: u64 = self.held.values().sum();
        (held, held + self.waiting.saturating_sub(known))
    }

    fn add(&mut self, tenant: &Tenant, count: u64) {
        self.waiting += count;
        match self.held.get_mut(tenant) {
            Some(held) => *held += count,
            None => {
                self.held.insert(tenant.clone(), count);
            }
        }
    }
}

/// Asks the log what waits in a lane.
pub async fn ask(log: &Arc<dyn Log>, lane: Lane) -> PortResult<u64> {
    let at: Vec<_> =
        (0..log.partitions()).map(|p| TopicPartition { topic: Topic::Lane(lane), partition: Partition(p) }).collect();
    // All at once: a log of servers answers them in one go.
    let bounds = try_join_all(at.iter().map(|at| log.bounds(*at)));
    let (committed, bounds) = try_join!(log.committed(PIPELINE, &at), bounds)?;
    let waiting = committed.into_iter().zip(bounds).map(|(done, (start, end))| {
        let done = done.map_or(start, |offset| offset.max(start));
        end.0.saturating_sub(done.0)
    });
    Ok(waiting.sum())
}

/// Keeps the lanes' counts true until told to stop.
pub(crate) async fn watch(
    log: Arc<dyn Log>,
    lanes: Arc<Lanes>,
    every_ms: u64,
    asked: Arc<tokio::sync::Notify>,
    stop: tokio_util::sync::CancellationToken,
) {
    let every = Duration::from_millis(every_ms.max(1));
    loop {
        let all = futures::future::join_all(Priority::ALL.map(|lane| ask(&log, lane))).await;
        for (lane, asked) in Priority::ALL.into_iter().zip(all) {
            match asked {
                Ok(waiting) => {
                    lanes.settle(lane, waiting);
                    metrics::gauge!("esh3ar_lane_waiting", "lane" => lane.word()).set(waiting as f64);
                }
                // The last count stands: a log that cannot be asked cannot be appended to either, and says so itself.
                Err(why) => tracing::debug!(lane = lane.word(), %why, "the log did not say what waits"),
            }
        }
        asked.notify_waiters();
        let pause = async {
            tokio::time::sleep(every).await;
            let _ = tokio::time::timeout(lanes.more_rest(every), lanes.filling.notified()).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = pause => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> Tenant {
        Tenant::parse(name).unwrap()
    }

    fn lanes() -> Lanes {
        Lanes::new(&DoorLimits { lane_slow: 100, lane_full: 1_000, ..Default::default() })
    }

    #[test]
    fn a_lane_slows_then_refuses_and_the_wait_grows() {
        let (lanes, acme) = (lanes(), tenant("acme"));
        let table = [
            (0, None),
            (99, None),
            (100, Some((Code::LaneSlow, 1_000))),
            (550, Some((Code::LaneSlow, 5_500))),
            (999, Some((Code::LaneSlow, 9_990))),
            (1_000, Some((Code::LaneFull, 10_000))),
            (90_000, Some((Code::LaneFull, 10_000))),
        ];
        for (waiting, want) in table {
            lanes.settle(Lane::High, waiting);
            let got = lanes.check(Lane::High, &acme).err().map(|p| (p.code, p.retry_after_ms.unwrap()));
            assert_eq!(got, want, "with {waiting} waiting");
            assert!(lanes.check(Lane::Low, &acme).is_ok(), "another lane is not slowed");
        }
    }

    #[test]
    fn one_tenant_s_backlog_does_not_slow_another() {
        let (lanes, acme, zain) = (lanes(), tenant("acme"), tenant("zain"));
        let code = |(taken, why): (u64, Option<Problem>)| (taken, why.map(|p| p.code));
        assert_eq!(code(lanes.join(Lane::Low, &acme, 120)), (100, Some(Code::LaneSlow)));
        assert_eq!(code(lanes.join(Lane::Low, &zain, 60)), (50, Some(Code::LaneSlow)));
        lanes.settle(Lane::Low, 75);
        assert_eq!(code(lanes.join(Lane::Low, &acme, 1)), (1, None));
    }

    #[test]
    fn the_log_is_asked_soon_once_a_lane_has_not_much_room_any_more() {
        use futures::FutureExt;
        let (lanes, acme, every) = (lanes(), tenant("acme"), Duration::from_millis(100));
        let fills = || lanes.filling.notified().now_or_never().is_some();
        assert_eq!(lanes.join(Lane::Low, &acme, 24).0, 24);
        assert_eq!((fills(), lanes.more_rest(every)), (false, 4 * every), "twice a second");
        assert_eq!(lanes.join(Lane::Low, &acme, 1).0, 1);
        assert_eq!((fills(), lanes.more_rest(every)), (true, Duration::ZERO), "ten times a second");
        assert_eq!(lanes.join(Lane::Low, &acme, 1).0, 1);
        assert!(!fills(), "said once");
        lanes.settle(Lane::Low, 0);
        assert_eq!(lanes.more_rest(every), 4 * every);
        lanes.add(Lane::High, &acme, 30);
        assert!(fills(), "what the expander adds too");
    }

    #[test]
    fn no_tenant_holds_more_than_half_of_the_room() {
        let lanes = Lanes::new(&DoorLimits { lane_slow: 1_000, lane_full: 1_000, ..Default::default() });
        let acme = tenant("acme");
        let (taken, why) = lanes.join(Lane::Low, &acme, 700);
        assert_eq!((taken, why.unwrap().code), (500, Code::LaneFull));
        lanes.leave(Lane::Low, &acme, 1);
        assert_eq!(lanes.join(Lane::Low, &acme, 1), (1, None));
    }

    proptest! {
        #[test]
        fn many_join_as_one_after_the_other_would(waiting in 0u64..1_200, before in 0u64..700, count in 0u64..1_200) {
            let (many, single, acme, zain) = (lanes(), lanes(), tenant("acme"), tenant("zain"));
            for lanes in [&many, &single] {
                lanes.add(Lane::High, &acme, before);
                lanes.add(Lane::High, &zain, waiting / 3);
                lanes.settle(Lane::High, waiting);
            }
            let one_by_one = (0..count).take_while(|_| {
                let fine = single.check(Lane::High, &acme).is_ok();
                single.add(Lane::High, &acme, u64::from(fine));
                fine
            });
            prop_assert_eq!(many.join(Lane::High, &acme, count).0, one_by_one.count() as u64);
        }

        #[test]
        fn what_tenants_hold_is_never_more_than_what_waits(
            moves in proptest::collection::vec((0u8..3, 0usize..3, 0u64..400), 0..40),
        ) {
            let (lanes, tenants) = (lanes(), [tenant("a"), tenant("b"), tenant("c")]);
            for (what, who, count) in moves {
                match what {
                    0 => { let _ = lanes.join(Lane::Normal, &tenants[who], count); }
                    1 => lanes.settle(Lane::Normal, count),
                    _ => lanes.add(Lane::Normal, &tenants[who], count),
                }
                let room = lanes.rooms[1].lock();
                prop_assert!(room.held.values().sum::<u64>() <= room.waiting);
            }
        }
    }
}
