//! Who owns which partition numbers: as evenly as can be, and as few moved as can be.

/// For each partition its member. `owners` is what is; members that are gone own nothing. Nobody, if there are no members.
pub(crate) fn spread(owners: &[Option<u64>], members: &[u64]) -> Vec<Option<u64>> {
    if members.is_empty() {
        return vec![None; owners.len()];
    }
    let held = |member: &u64| owners.iter().filter(|owner| **owner == Some(*member)).count();
    // Who holds most keeps one more where they do not divide evenly; the oldest first among equals.
    let mut ranked = members.to_vec();
    ranked.sort_unstable();
    ranked.sort_by_key(|member| std::cmp::Reverse(held(member)));
    let (each, over) = (owners.len() / members.len(), owners.len() % members.len());
    let mut room: Vec<(u64, usize)> =
        ranked.into_iter().enumerate().map(|(at, member)| (member, each + usize::from(at < over))).collect();
    let mut take = |member: Option<u64>| {
        let place = match member {
            Some(member) => room.iter_mut().find(|(m, left)| *m == member && *left > 0),
            None => room.iter_mut().max_by_key(|(m, left)| (*left, std::cmp::Reverse(*m))),
        }?;
        place.1 = place.1.checked_sub(1)?;
        Some(place.0)
    };
    let kept: Vec<_> = owners.iter().map(|owner| owner.and_then(|owner| take(Some(owner)))).collect();
    kept.into_iter().map(|kept| kept.or_else(|| take(None))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_has_all_and_the_second_gets_half() {
        let alone = spread(&[None; 6], &[1]);
        assert_eq!(alone, [Some(1); 6]);
        assert_eq!(spread(&alone, &[1, 2]), [Some(1), Some(1), Some(1), Some(2), Some(2), Some(2)]);
        assert_eq!(spread(&alone, &[]), [None; 6]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn everyone_has_as_much_and_nothing_moves_without_need(
            owners in prop::collection::vec(prop::option::of(0u64..8), 1..48),
            members in prop::collection::btree_set(0u64..8, 1..8),
        ) {
            let members: Vec<_> = members.into_iter().collect();
            let target = spread(&owners, &members);
            let count = |m: &u64| target.iter().filter(|t| **t == Some(*m)).count();
            let counts: Vec<_> = members.iter().map(count).collect();
            prop_assert_eq!(counts.iter().sum::<usize>(), owners.len());
            let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
            prop_assert!(most - least <= 1);
            // A member gives something up only if it held more than its share.
            for member in &members {
                let before = owners.iter().filter(|o| **o == Some(*member)).count();
                let stays = owners.iter().zip(&target).filter(|(o, t)| **o == Some(*member) && o == t).count();
                prop_assert_eq!(stays, before.min(count(member)));
            }
            prop_assert_eq!(spread(&target, &members), target);
        }
    }
}
