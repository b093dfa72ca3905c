//! Repeating what a port did not do: for ever while it is away, with the same bytes at the same places, and not at all once
//! the work is another owner's or the port refuses it for good.

use schemas::{
    Partition,
    port::{Append, Dead, Entry, PortError, PortResult, Schedule},
};

use crate::{backoff::Backoff, ownership::Owners, shared::Kit};

/// Reads until there is one answer for each that is asked. `None`: nothing of it is ours any more.
pub(crate) async fn until_answered<Asked, Answer, Reading>(
    kit: &Kit,
    owners: &Owners,
    asked: &[Asked],
    read: impl Fn() -> Reading,
) -> Option<Vec<Answer>>
where
    Reading: Future<Output = PortResult<Vec<Answer>>>,
{
    if asked.is_empty() {
        return Some(Vec::new());
    }
    let mut backoff = Backoff::default();
    while owners.any_held(&kit.ownership) {
        // Asked again behind the gate, where it may have waited: what is lost by then is no owner's question any more.
        let reading = async {
            match owners.any_held(&kit.ownership) {
                true => read().await,
                false => Err(PortError::Fenced("nothing of it is held any more".into())),
            }
        };
        match kit.gates.history.call(reading).await {
            Ok(answers) if answers.len() == asked.len() => return Some(answers),
            Ok(_) => again("read", &"history answered another number than was asked", &backoff),
            Err(why @ (PortError::Rejected(_) | PortError::Fenced(_))) => {
                owners.lose(&kit.ownership, &why);
                return None;
            }
            Err(why) => again("read", &why, &backoff),
        }
        backoff.wait().await;
    }
    None
}

/// Writes, and writes again at the same places with the same bytes, until history has confirmed it. What belongs to a
/// partition that was lost meanwhile is left out; a write that is refused for one of several partitions is made one by one,
/// and the refused ones are lost.
pub(crate) async fn until_recorded(kit: &Kit, mut entries: Vec<Entry>, mut schedule: Schedule, mut owners: Owners) {
    let mut backoff = Backoff::default();
    loop {
        let gone = owners.drop_lost(&kit.ownership);
        if !gone.is_empty() {
            entries.retain(|entry| !gone.contains(&entry.inbox.partition));
            keep(&mut schedule, |partition| !gone.contains(&partition));
        }
        if entries.is_empty() && is_empty(&schedule) {
            return;
        }
        schedule.epochs = owners.epochs();
        match kit.gates.history.call(kit.ports.history.record(&entries, &schedule)).await {
            Ok(()) => return,
            Err(why @ (PortError::Rejected(_) | PortError::Fenced(_))) => {
                if owners.len() > 1 {
                    return one_by_one(kit, &entries, &schedule, &owners).await;
                }
                owners.lose(&kit.ownership, &why);
            }
            Err(why) => {
                again("record", &why, &backoff);
                backoff.wait().await;
            }
        }
    }
}

/// Keeps what belongs to some partitions.
fn keep(schedule: &mut Schedule, kept: impl Fn(Partition) -> bool) {
    let Schedule { add, done, conversations, turns, completed, epochs: _ } = schedule;
    add.retain(|due| kept(due.partition));
    completed.retain(|(partition, _)| kept(*partition));
    done.retain(|due| kept(due.partition));
    conversations.retain(|conversation| kept(conversation.partition));
    turns.retain(|turn| conversations.iter().any(|conversation| conversation.id == turn.conversation));
}

/// Whether there is nothing to be written.
pub(super) fn is_empty(schedule: &Schedule) -> bool {
    let Schedule { add, done, conversations, turns, completed, epochs: _ } = schedule;
    let chat = conversations.is_empty() && turns.is_empty() && completed.is_empty();
    add.is_empty() && done.is_empty() && chat
}

/// The same write, a partition at a time: each is whole by itself.
async fn one_by_one(kit: &Kit, entries: &[Entry], schedule: &Schedule, owners: &Owners) {
    for (partition, epoch) in owners.each() {
        let mine = entries.iter().filter(|entry| entry.inbox.partition == partition).cloned().collect();
        let mut rows = schedule.clone();
        keep(&mut rows, |of| of == partition);
        Box::pin(until_recorded(kit, mine, rows, Owners::one(partition, epoch))).await;
    }
}

/// Appends until all are durable. What may have been appended is appended again: facts merge, retries and graves are known by
/// their numbers. What the log refuses for good is said and left, because again is useless.
pub(crate) async fn until_appended(kit: &Kit, mut records: Vec<Append>, owners: &mut Owners) {
    let mut backoff = Backoff::default();
    loop {
        let gone = owners.drop_lost(&kit.ownership);
        records.retain(|record| !gone.contains(&record.at.partition));
        if records.is_empty() {
            return;
        }
        let answers = kit.gates.log.append(&*kit.ports.log, records.clone()).await;
        let mut left = Vec::new();
        for (record, answer) in records.into_iter().zip(answers) {
            match answer {
                Ok(_) => {}
                Err(why @ PortError::Rejected(_)) => tracing::error!(at = %record.at, %why, "a record was refused"),
                Err(why @ PortError::Fenced(_)) => {
                    owners
                        .each()
                        .filter(|(partition, _)| *partition == record.at.partition)
                        .for_each(|(partition, epoch)| kit.ownership.lost(partition, epoch, &why));
                }
                Err(why) => {
                    if left.is_empty() {
                        again("append", &why, &backoff);
                    }
                    left.push(record);
                }
            }
        }
        if left.is_empty() {
            return;
        }
        records = left;
        backoff.wait().await;
    }
}

/// Buries until the index has them, or refuses them for good: the log's records of them stand all the same.
pub(crate) async fn until_buried(kit: &Kit, dead: &[Dead], owners: &Owners) {
    let mut backoff = Backoff::default();
    while owners.any_held(&kit.ownership) {
        match kit.gates.history.call(kit.ports.history.bury(dead)).await {
            Ok(()) => return,
            Err(why @ (PortError::Rejected(_) | PortError::Fenced(_))) => {
                tracing::error!(%why, count = dead.len(), "dead letters are not in the index");
                return;
            }
            Err(why) => again("bury", &why, &backoff),
        }
        backoff.wait().await;
    }
}

/// Says that an act is repeated: at once for the first time, then less and less often.
pub(crate) fn again(act: &'static str, why: &dyn std::fmt::Display, backoff: &Backoff) {
    metrics::counter!("esh3ar_port_retries_total", "call" => act).increment(1);
    if backoff.count().is_power_of_two() || backoff.count() == 0 {
        tracing::warn!(act, %why, times = backoff.count(), "an act did not succeed and is repeated");
    }
}
