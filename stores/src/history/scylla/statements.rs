//! Every statement, prepared once.

use std::hash::{DefaultHasher, Hash, Hasher};

use scylla::{client::session::Session, statement::prepared::PreparedStatement, value::CqlValue};

use super::{
    connecting::Fault,
    session::{Write, prepare},
};

macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Names a statement.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum Pick { $($(#[$doc])* $name,)* }

        const TEXTS: &[&str] = &[$($text),*];

        /// What they are called, in metrics.
        pub(super) const NAMES: &[&str] = &[$(stringify!($name)),*];
    };
}

statements! {
    Entry = "INSERT INTO KS.entries_by_inbox (inbox, bucket, n, epoch, head, body) VALUES (?, ?, ?, ?, ?, ?) USING TTL ?",
    EntriesUp = "SELECT n, epoch, head, body FROM KS.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n >= ? LIMIT ?",
    EntriesDown = "SELECT n, epoch, head, body FROM KS.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n <= ? ORDER BY n DESC, epoch DESC LIMIT ?",
    HeadsDown = "SELECT n, epoch, head FROM KS.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n <= ? ORDER BY n DESC, epoch DESC LIMIT ?",
    EntryAt = "SELECT head, body FROM KS.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n = ? AND epoch = ?",
    EntriesAt = "SELECT n, epoch FROM KS.entries_by_inbox WHERE inbox = ? AND bucket = ? AND n IN ?",

    Fork = "INSERT INTO KS.inboxes (inbox, epoch, n, prev) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
    ForkGone = "DELETE FROM KS.inboxes USING TIMESTAMP ? WHERE inbox = ? AND epoch = ?",
    Bucket = "INSERT INTO KS.inboxes (inbox, bucket) VALUES (?, ?) USING TIMESTAMP ?",
    SetLedger = "INSERT INTO KS.inboxes (inbox, ledger) VALUES (?, ?) USING TIMESTAMP ?",
    Head = "SELECT epoch, n, prev, bucket, ledger FROM KS.inboxes WHERE inbox = ?",

    Place = "INSERT INTO KS.places (slot, id, inbox, epoch, n, head) VALUES (?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    Scheduled = "INSERT INTO KS.places (slot, id, inbox, head, body) VALUES (?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    SetState = "UPDATE KS.places USING TTL ? AND TIMESTAMP ? SET state = ? WHERE slot = ? AND id = ?",
    Forget = "DELETE FROM KS.places USING TIMESTAMP ? WHERE slot = ? AND id = ?",
    Places = "SELECT id, inbox, epoch, n, head, state, body FROM KS.places WHERE slot = ? AND id IN ?",
    States = "SELECT id, state FROM KS.places WHERE slot = ? AND id IN ?",

    Said = "INSERT INTO KS.places (slot, id, conversation, turn) VALUES (?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    Spots = "SELECT id, conversation, turn, state FROM KS.places WHERE slot = ? AND id IN ?",

    Talk = "INSERT INTO KS.conversations (id, row) VALUES (?, ?) USING TIMESTAMP ?",
    TalkShut = "DELETE row FROM KS.conversations USING TIMESTAMP ? WHERE id = ?",
    TalkGone = "INSERT INTO KS.conversations (id, gone) VALUES (?, ?) USING TIMESTAMP ?",
    TalkAt = "SELECT row, gone FROM KS.conversations WHERE id = ?",
    Turn = "INSERT INTO KS.turns (conversation, bucket, seq, version, turn) VALUES (?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    TurnAt = "SELECT turn FROM KS.turns WHERE conversation = ? AND bucket = ? AND seq = ?",
    TurnsUp = "SELECT seq, turn FROM KS.turns WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ? ORDER BY seq ASC LIMIT ?",
    TurnsNear = "SELECT seq, turn FROM KS.turns WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ?",
    TurnsDown = "SELECT seq, turn FROM KS.turns WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ? ORDER BY seq DESC LIMIT ?",
    TurnVersions = "SELECT seq, version FROM KS.turns WHERE conversation = ? AND bucket = ? AND seq IN ?",
    Change = "INSERT INTO KS.changes (conversation, bucket, seq, edit, version, change) VALUES (?, ?, ?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    Changes = "SELECT seq, edit, version, change FROM KS.changes WHERE conversation = ? AND bucket = ? AND seq >= ? AND seq <= ?",
    Listed = "INSERT INTO KS.listed (user, conversation, archived, at, unread) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
    ListedGone = "DELETE FROM KS.listed USING TIMESTAMP ? WHERE user = ? AND conversation = ?",
    List = "SELECT conversation, archived, at, unread FROM KS.listed WHERE user = ?",
    ListMarks = "SELECT conversation, archived, at, WRITETIME(at) FROM KS.listed WHERE user = ?",

    Active = "INSERT INTO KS.active (partition, week, shard, inbox) VALUES (?, ?, ?, ?)",
    ActiveFrom = "SELECT inbox FROM KS.active WHERE partition = ? AND week = ? AND shard = ? AND inbox > ? LIMIT ?",
    ActiveGone = "DELETE FROM KS.active WHERE partition = ? AND week = ? AND shard = ?",

    Due = "INSERT INTO KS.due (name, bucket, at, id, kind, value) VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?",
    DueGone = "DELETE FROM KS.due USING TIMESTAMP ? WHERE name = ? AND bucket = ? AND at = ? AND id = ? AND kind = ?",
    DueFrom = "SELECT at, id, kind, value FROM KS.due WHERE name = ? AND bucket = ? AND (at, id, kind) >= (?, ?, ?) AND (at, id, kind) < (?, ?, ?) LIMIT ?",
    DueAt = "SELECT at, id, kind, value FROM KS.due WHERE name = ? AND bucket = ? AND (at, id, kind) IN ?",

    AddBucket = "INSERT INTO KS.buckets (name, bucket) VALUES (?, ?)",
    BucketGone = "DELETE FROM KS.buckets WHERE name = ? AND bucket = ?",
    Buckets = "SELECT bucket FROM KS.buckets WHERE name = ?",

    Cursor = "INSERT INTO KS.cursors (user, device, partition, position) VALUES (?, ?, ?, ?) USING TTL ? AND TIMESTAMP ?",
    Cursors = "SELECT device, partition, position FROM KS.cursors WHERE user = ?",

    Prefer = "INSERT INTO KS.people (user, hidden) VALUES (?, ?)",
    Seen = "INSERT INTO KS.people (user, seen) VALUES (?, ?) USING TTL ? AND TIMESTAMP ?",
    Person = "SELECT hidden, seen FROM KS.people WHERE user = ?",

    Dead = "INSERT INTO KS.dead (day, shard, at, id, round, letter) VALUES (?, ?, ?, ?, ?, ?) USING TTL ?",
    DeadGone = "DELETE FROM KS.dead WHERE day = ? AND shard = ? AND at = ? AND id = ? AND round = ?",
    DeadFrom = "SELECT at, id, round, letter FROM KS.dead WHERE day = ? AND shard = ? AND (at, id, round) < (?, ?, ?) LIMIT ?",
    DeadOldest = "SELECT at, id, round, letter FROM KS.dead WHERE day = ? AND shard = ? AND at < ? ORDER BY at ASC, id ASC, round ASC LIMIT ?",
    DeadAt = "SELECT letter FROM KS.dead WHERE day = ? AND shard = ? AND at = ? AND id = ? AND round = ?",
    DeadName = "INSERT INTO KS.dead_by_id (id, round, at, tenant, waits) VALUES (?, ?, ?, ?, ?) USING TTL ?",
    DeadNameGone = "DELETE FROM KS.dead_by_id WHERE id = ? AND round = ?",
    DeadNames = "SELECT round, at, tenant, waits FROM KS.dead_by_id WHERE id = ?",

    Recipients = "INSERT INTO KS.recipients (broadcast, attempt, chunk, phones) VALUES (?, ?, ?, ?) USING TTL ?",
    Chunks = "SELECT chunk, phones FROM KS.recipients WHERE broadcast = ? AND attempt = ? AND chunk >= ? AND chunk <= ?",
    Running = "INSERT INTO KS.running (one, at, broadcast) VALUES (0, ?, ?) USING TTL ?",
    RunningGone = "DELETE FROM KS.running WHERE one = 0 AND at = ? AND broadcast = ?",
    AllRunning = "SELECT at, broadcast FROM KS.running WHERE one = 0",

    Count = "INSERT INTO KS.counts (name, process, value) VALUES (?, ?, ?)",
    Counts = "SELECT process, value FROM KS.counts WHERE name = ?",

    Epoch = "SELECT epoch FROM CTL.epochs WHERE partition = ?",
    FirstEpoch = "INSERT INTO CTL.epochs (partition, epoch) VALUES (?, ?) IF NOT EXISTS",
    NextEpoch = "UPDATE CTL.epochs SET epoch = ? WHERE partition = ? IF epoch = ?",
    Begin = "INSERT INTO CTL.broadcasts (id, attempt, asked, recipients, version, progress) VALUES (?, ?, ?, ?, 0, ?) IF NOT EXISTS USING TTL ?",
    Progress = "UPDATE CTL.broadcasts USING TTL ? SET version = ?, progress = ? WHERE id = ? IF version = ?",
    Installation = "SELECT log FROM CTL.installation WHERE one = 0",
    Claim = "INSERT INTO CTL.installation (one, log) VALUES (0, ?) IF NOT EXISTS",
    Broadcast = "SELECT attempt, asked, recipients, version, progress FROM CTL.broadcasts WHERE id = ?",
}

/// All of them.
pub(super) struct Statements(Vec<PreparedStatement>);

impl Statements {
    /// Prepares all for this keyspace; says what is missing.
    pub(super) async fn prepare(session: &Session, keyspace: &str) -> Result<Self, Fault> {
        let texts = TEXTS.iter().map(|text| fill(text, keyspace));
        let mut prepared = futures::future::try_join_all(texts.map(async |text| prepare(session, &text).await)).await?;
        for pick in [Pick::Epoch, Pick::Broadcast, Pick::Installation] {
            // What a transaction left half done is finished before this is answered.
            if let Some(statement) = prepared.get_mut(pick as usize) {
                statement.set_consistency(scylla::statement::Consistency::LocalSerial);
            }
        }
        Ok(Self(prepared))
    }

    pub(super) fn get(&self, pick: Pick) -> &PreparedStatement {
        &self.0[pick as usize]
    }

    /// A number of the CQL partition that a row stands in.
    pub(super) fn home(&self, row: &Write) -> u64 {
        let mut hash = DefaultHasher::new();
        for at in self.get(row.pick).get_variable_pk_indexes() {
            match row.values.get(usize::from(at.index)) {
                Some(CqlValue::Text(text)) => text.hash(&mut hash),
                Some(CqlValue::Blob(bytes)) => bytes.hash(&mut hash),
                Some(CqlValue::Uuid(id)) => id.hash(&mut hash),
                Some(CqlValue::BigInt(number)) => number.hash(&mut hash),
                Some(CqlValue::Int(number)) => number.hash(&mut hash),
                other => format!("{other:?}").hash(&mut hash),
            }
        }
        hash.finish()
    }
}

/// The text for a keyspace.
fn fill(text: &str, keyspace: &str) -> String {
    text.replace("KS.", &format!("{keyspace}.")).replace("CTL.", &format!("{}.", super::schema::control(keyspace)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pick_has_its_text() {
        assert!(TEXTS[Pick::Broadcast as usize].contains("CTL.broadcasts"));
        assert_eq!(fill(TEXTS[Pick::Epoch as usize], "e"), "SELECT epoch FROM e_control.epochs WHERE partition = ?");
    }
}
