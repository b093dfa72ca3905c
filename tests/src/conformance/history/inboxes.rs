//! Inboxes: takeover, recording, reading by place and by id.

use futures::future::join_all;
use schemas::{
    Epoch, Partition, Position, State,
    port::{Known, Schedule, Tail, Unread},
};

use super::{Installation, kit::*};

/// Taking over raises the epoch of each partition, durably.
pub async fn a_takeover_raises_the_epoch_and_it_stays_raised(bed: &mut dyn Installation) {
    let history = bed.history();
    let before = own(&*history, &[Partition(1), Partition(2)]).await;
    assert!(before.iter().all(|epoch| *epoch > Epoch(0)), "epoch 0 stands before every entry");
    let again = own(&*history, &[Partition(2)]).await;
    assert!(again[0] > before[1]);
    drop(history);
    bed.crash().await;
    let after = own(&*bed.history(), &[Partition(2), Partition(1)]).await;
    assert!(after[0] > again[0] && after[1] > before[0]);
}

/// Unknown inboxes and ids are empty, not errors.
pub async fn an_inbox_nobody_wrote_to_ends_at_the_start(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    assert_eq!(history.tails(std::slice::from_ref(&inbox)).await.unwrap(), [Tail::default()]);
    assert_eq!(history.unread(&inbox).await.unwrap(), Unread { one_way: 0 });
    let span = history.read(&inbox, Position::START, 10).await.unwrap();
    assert!(span.entries.is_empty() && !span.passed_by_retention);
    let id = message(&inbox).id;
    assert_eq!(history.known(&[id]).await.unwrap(), [None]);
    assert_eq!(history.messages(&[id]).await.unwrap(), [None]);
    assert_eq!(history.states(&[id]).await.unwrap(), [State::default()]);
}

/// After the call answers: by place, by id, at the end, and after a stop or a crash.
pub async fn what_was_recorded_is_found_everywhere_and_survives_stop_and_crash(bed: &mut dyn Installation) {
    let inbox = inbox(&tenant(), 1);
    let written = entries(&inbox, 5);
    record(&*bed.history(), &written).await;
    for round in 0..3 {
        match round {
            1 => bed.crash().await,
            2 => bed.restart().await,
            _ => {}
        }
        let history = bed.history();
        assert_eq!(whole(&*history, &inbox).await, written);
        let tail = Tail { position: at(5), one_way: 5 };
        assert_eq!(history.tails(std::slice::from_ref(&inbox)).await.unwrap(), [tail]);
        assert_eq!(history.unread(&inbox).await.unwrap().one_way, 5);
        let stranger = message(&inbox).id;
        let ids = [written[3].message.id, stranger, written[0].message.id];
        let found = history.messages(&ids).await.unwrap();
        assert!(found[1].is_none());
        let placed = found[0].as_ref().unwrap();
        assert_eq!(placed.message, written[3].message);
        assert_eq!((&placed.inbox, placed.position, placed.prev), (&inbox, Some(at(4)), at(3)));
        assert_eq!((placed.recorded_at, &placed.state), (NOON, &State::default()));
        let known =
            |n: usize| Known { fingerprint: written[n].message.fingerprint, position: Some(written[n].position) };
        assert_eq!(history.known(&ids).await.unwrap(), [Some(known(3)), None, Some(known(0))]);
    }
}

/// Recording is idempotent, also of older entries after newer ones.
pub async fn the_same_entries_again_change_nothing(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 4);
    record(&*history, &written).await;
    let read = fact(&written[0], schemas::What::Read, 1);
    history.settle(&[read]).await.unwrap();
    for again in [&written[..], &written[..1], &written[1..3]] {
        record(&*history, again).await;
        assert_eq!(whole(&*history, &inbox).await, written);
        let tail = Tail { position: at(4), one_way: 4 };
        assert_eq!(history.tails(std::slice::from_ref(&inbox)).await.unwrap(), [tail]);
        assert_eq!(history.unread(&inbox).await.unwrap().one_way, 3);
        let id = written[0].message.id;
        assert_eq!(history.states(&[id]).await.unwrap()[0].status(), schemas::Status::Read);
    }
}

/// What is behind a missing entry is not given out until that entry is there.
pub async fn a_reader_never_passes_a_break(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 6);
    record(&*history, &[written[0].clone(), written[1].clone(), written[3].clone(), written[4].clone()]).await;
    for limit in [1, 2, 3, 10] {
        let mut from = Position::START;
        let mut read = Vec::new();
        loop {
            let page = entries_of(history.read(&inbox, from, limit).await.unwrap());
            let Some(last) = page.last() else { break };
            from = last.position;
            read.extend(page);
        }
        assert_eq!(places(&read), [at(1), at(2)], "in pages of {limit}");
    }
    record(&*history, &written[2..3]).await;
    assert_eq!(places(&whole(&*history, &inbox).await), (1..=5).map(at).collect::<Vec<_>>());
}

/// An entry that the chain from the end does not reach is not in the inbox, whatever the page size and wherever one reads
/// from.
pub async fn what_a_late_owner_wrote_is_not_in_the_inbox(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let place = schemas::cursor::place;
    let row = |position, prev, one_way| entry(&inbox, position, prev, one_way, message(&inbox));
    record(&*history, &entries(&inbox, 3)).await;
    // The owner of epoch 2 went on from 1.3; the one of epoch 1 wrote 1.4 and 1.5 all the same. So again in epoch 3.
    record(&*history, &[row(at(4), at(3), 4), row(at(5), at(4), 5)]).await;
    record(&*history, &[row(place(2, 4), at(3), 4), row(place(2, 5), place(2, 4), 5)]).await;
    record(&*history, &[row(place(3, 5), place(2, 4), 5), row(place(3, 6), place(3, 5), 6)]).await;
    let truth = [at(1), at(2), at(3), place(2, 4), place(3, 5), place(3, 6)];
    for limit in 1..8 {
        for start in [Position::START, at(2), at(3), at(4), at(5), place(2, 5), place(3, 5)] {
            let (mut from, mut read) = (start, Vec::new());
            loop {
                let page = entries_of(history.read(&inbox, from, limit).await.unwrap());
                let Some(last) = page.last() else { break };
                from = last.position;
                read.extend(places(&page));
            }
            let rest: Vec<_> = truth.iter().copied().filter(|place| *place > start).collect();
            assert_eq!(read, rest, "from {start} in pages of {limit}");
        }
    }
    let tail = Tail { position: place(3, 6), one_way: 6 };
    assert_eq!(history.tails(std::slice::from_ref(&inbox)).await.unwrap(), [tail]);
}

/// No user's slice contains another's, nor one partition's another's.
pub async fn inboxes_whose_names_begin_alike_keep_apart(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let names = ["+9627900000", "+96279000001", "business:a", "business:a.b", "business:ab"];
    let mut all = Vec::new();
    for partition in [3, 4] {
        for name in names {
            let user = format!("{tenant}/{name}").parse().unwrap();
            let inbox = schemas::Inbox { user, partition: Partition(partition) };
            let written = entries(&inbox, 3);
            record(&*history, &written).await;
            all.push((inbox, written));
        }
    }
    for (inbox, written) in all {
        assert_eq!(whole(&*history, &inbox).await, written);
        assert_eq!(history.tails(&[inbox]).await.unwrap()[0].position, at(3));
    }
}

/// Calls that are on their way together become visible in the order in which they were made: a reader sees no break that
/// heals.
pub async fn records_in_flight_together_become_visible_in_order(bed: &mut dyn Installation) {
    let (history, inbox) = (bed.history(), inbox(&tenant(), 1));
    let written = entries(&inbox, 300);
    let nothing = Schedule::default();
    let writing = join_all(written.chunks(3).map(|call| history.record(call, &nothing)));
    let reading = async {
        let mut seen = 0;
        while seen < written.len() {
            let now = whole(&*history, &inbox).await;
            assert_eq!(now, written[..now.len()]);
            let tail = history.tails(std::slice::from_ref(&inbox)).await.unwrap()[0];
            assert!(tail.position.n >= now.len() as u64);
            let upto = written.get(..tail.position.n as usize).unwrap();
            assert_eq!(places(&whole(&*history, &inbox).await)[..upto.len()], places(upto));
            seen = now.len();
            tokio::task::yield_now().await;
        }
    };
    let (outcomes, ()) = futures::join!(writing, reading);
    assert!(outcomes.iter().all(Result::is_ok));
}

/// A pipeline's batch is of many users.
pub async fn one_call_records_many_inboxes(bed: &mut dyn Installation) {
    let (history, tenant) = (bed.history(), tenant());
    let inboxes: Vec<_> = (1..=50).map(|number| inbox(&tenant, number)).collect();
    let mut batch: Vec<_> = inboxes.iter().map(|inbox| entries(inbox, 2)).collect();
    let (first, second): (Vec<_>, Vec<_>) = batch.iter_mut().map(|two| (two[0].clone(), two[1].clone())).unzip();
    record(&*history, &[first, second].concat()).await;
    for (inbox, written) in inboxes.iter().zip(&batch) {
        assert_eq!(&whole(&*history, inbox).await, written);
    }
    let tails = history.tails(&inboxes).await.unwrap();
    assert!(tails.iter().all(|tail| *tail == Tail { position: at(2), one_way: 2 }));
    let ids: Vec<_> = batch.iter().flatten().map(|entry| entry.message.id).collect();
    let found = history.messages(&ids).await.unwrap();
    assert!(found.into_iter().zip(ids).all(|(placed, id)| placed.unwrap().message.id == id));
}

/// For metrics: what was recorded shows, and a restart does not start from zero.
pub async fn sizes_follow_what_is_kept(bed: &mut dyn Installation) {
    let inbox = inbox(&tenant(), 1);
    let before = bed.history().sizes().await.unwrap().0;
    for call in entries(&inbox, 500).chunks(5) {
        record(&*bed.history(), call).await;
    }
    let after = bed.history().sizes().await.unwrap().0;
    assert_eq!(after - before, 500);
    bed.restart().await;
    let restarted = bed.history().sizes().await.unwrap().0;
    assert!(restarted > before && restarted <= after, "{restarted} of {after} after a restart");
}
