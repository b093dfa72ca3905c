//! An owner of conversations: applies what the log has by the rules of conversations, as the pipeline does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use schemas::{
    Conversation, Epoch, Inbox, Message, Partition, Position, Topic,
    conversation::{Act, Change, Original, Turn, first_of},
    limits::ChatLimits,
    port::{Placed, Schedule},
    record::LaneRecord,
};

use super::*;

/// Applies what the log has, as long as it lives.
pub(super) struct Owner(tokio::task::JoinHandle<()>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl House {
    pub(super) fn own(&self) -> Owner {
        self.own_while(Arc::new(AtomicBool::new(true)))
    }

    pub(super) fn own_while(&self, awake: Arc<AtomicBool>) -> Owner {
        let (log, history) = (self.log.clone(), self.history.clone());
        Owner(tokio::spawn(async move {
            let mut done = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                if !awake.load(Ordering::SeqCst) {
                    continue;
                }
                let new: Vec<_> = log.records.lock().iter().skip(done).cloned().collect();
                done += new.len();
                for record in new {
                    assert_eq!(record.at.topic, Topic::Lane(schemas::Lane::High), "chat rides high");
                    match schemas::codec::decode::<LaneRecord>(&record.body).unwrap() {
                        LaneRecord::Accepted(message) => apply_message(&history, message),
                        LaneRecord::Chat(command) => apply_command(&history, &command),
                        LaneRecord::Again(_) => panic!("the door repeats nothing"),
                    }
                }
            }
        }))
    }
}

fn apply_message(history: &FakeHistory, message: Message) {
    let id = message.kind.conversation().unwrap();
    if history.talks.said(&[message.id], |_| Default::default())[0].is_some() {
        return;
    }
    let row = history.talks.conversations(&[id]).pop().flatten();
    let opened = || first_of(&message).map(|pair| Conversation::open(pair, Partition(0), Epoch(1), NOW));
    let mut row = row.or_else(opened).expect("the door asked for the row");
    let act = Act::Message { id: message.id, content: &message.content };
    match row.apply(&message.from.clone(), &act, &ChatLimits::default(), Epoch(1), NOW) {
        Ok(_) => record(history, row, message, None),
        Err(why) => drop(history.refused.lock().insert(message.id, why.reason())),
    }
}

fn apply_command(history: &FakeHistory, command: &schemas::ChatCommand) {
    let row = history.talks.conversations(&[command.pair.id()]).pop().flatten();
    let mut row = row.unwrap_or_else(|| Conversation::open(command.pair.clone(), Partition(0), Epoch(1), NOW));
    let about = command.command.about().and_then(|of| history.talks.said(&[of], |_| Default::default()).remove(0));
    let original: Option<Original> = about.as_ref().and_then(schemas::conversation::Shown::original);
    let seq = match &command.command {
        schemas::conversation::Command::Read { up_to: schemas::conversation::UpTo::Seq(seq) } => *seq,
        _ => about.as_ref().map_or(0, |shown| shown.turn.seq),
    };
    let mark = command.side().map_or(0, |side| {
        let turns = history.talks.log(row.id);
        let at = turns.iter().rfind(|turn| turn.seq <= seq).map(|turn| (turn.to_mobile, turn.to_business));
        schemas::ChatCommand::mark(side, row.half(side), row.last_seq, seq, at)
    });
    let act = command.command.act(original.as_ref(), (mark, seq));
    match row.apply(&command.by, &act, &ChatLimits::default(), Epoch(1), NOW) {
        Ok(Change::Turn(note)) => {
            let message = command.message(&row, note.as_ref());
            record(history, row, message, original.map(|original| original.seq));
        }
        Ok(_) => history.talks.record(&Schedule { conversations: vec![row], ..Schedule::default() }),
        Err(why) => drop(history.refused.lock().insert(command.id, why.reason())),
    }
}

fn record(history: &FakeHistory, row: Conversation, message: Message, of: Option<u64>) {
    let message = Arc::new(message);
    let inbox = Inbox { user: message.to.clone(), partition: Partition(0) };
    let placed = Placed {
        message: message.clone(),
        inbox,
        position: Some(Position::START),
        prev: Position::START,
        recorded_at: NOW,
        seq: Some(row.last_seq),
        state: Default::default(),
    };
    history.placed.lock().insert(message.id, placed);
    let turn = Turn {
        conversation: row.id,
        seq: row.last_seq,
        to_mobile: row.mobile.to,
        to_business: row.business.to,
        version: row.version,
        recorded_at: NOW,
        message,
        of,
    };
    history.talks.record(&Schedule { conversations: vec![row], turns: vec![turn], ..Schedule::default() });
}
