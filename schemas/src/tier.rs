//! Retries: the delay tiers and the one rule that says what comes after a failed attempt (R4.1, R4.2).

use serde::{Deserialize, Serialize};

/// One fixed delay, with a topic of its own so that each topic is in due order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tier(u8);

impl Tier {
    /// The six, shortest first: 1, 2, 4, 8, 16 and 32 s.
    pub const ALL: [Self; 6] = [Self(0), Self(1), Self(2), Self(3), Self(4), Self(5)];

    /// Its place among the six.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The delay in milliseconds, of the first tier's: 2^i times that.
    pub fn delay_ms(self, first_ms: u64) -> u64 {
        first_ms << self.0
    }

    /// The topic's name. It says the delay by default; configuration may scale all delays alike.
    pub fn topic(self) -> &'static str {
        [
            "esh3ar.retry.1s",
            "esh3ar.retry.2s",
            "esh3ar.retry.4s",
            "esh3ar.retry.8s",
            "esh3ar.retry.16s",
            "esh3ar.retry.32s",
        ][self.index()]
    }
}

/// Which try this is: 0 is the first delivery, 1 to 6 are the retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Attempt(pub u8);

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Wait out this tier, then try again as this attempt.
    Retry(Tier, Attempt),
    /// Six retries have failed: to the dead letters.
    Bury,
}

impl Attempt {
    /// The last retry.
    pub const LAST: Self = Self(6);

    /// What follows when this attempt has failed.
    pub fn failed(self) -> Next {
        match Tier::ALL.get(usize::from(self.0)) {
            Some(tier) => Next::Retry(*tier, Self(self.0 + 1)),
            None => Next::Bury,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p4_attempts_grow_and_end_after_six_retries() {
        let (mut attempt, mut delays) = (Attempt::default(), Vec::new());
        while let Next::Retry(tier, next) = attempt.failed() {
            assert!(next > attempt && next <= Attempt::LAST);
            delays.push(tier.delay_ms(1_000));
            attempt = next;
        }
        assert_eq!(delays, [1_000, 2_000, 4_000, 8_000, 16_000, 32_000]);
        assert_eq!(attempt, Attempt::LAST);
    }

    proptest::proptest! {
        #[test]
        fn p4_no_attempt_leads_back(n in 0u8..=255) {
            match Attempt(n).failed() {
                Next::Retry(_, next) => proptest::prop_assert!(next.0 == n + 1 && next <= Attempt::LAST),
                Next::Bury => proptest::prop_assert!(Attempt(n) >= Attempt::LAST),
            }
        }
    }
}
