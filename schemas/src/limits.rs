//! Every bound, with its reason. All are configuration (`[limits]`); these are the defaults. What is full refuses clearly
//! before it accepts, and never drops after (invariant 10).

use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $fdoc:literal])* $field:ident: $ty:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[doc = $fdoc])* pub $field: $ty,)* }
        impl Default for $name {
            fn default() -> Self { Self { $($field: $default,)* } }
        }
        impl $name {
            /// Each key with its documentation, for `esh3ar config show` and the test that every key has one.
            pub const KEYS: &'static [(&'static str, &'static str)] = &[$((stringify!($field), concat!($($fdoc),*)),)*];
        }
    };
}

limits! {
    /// One message.
    MessageLimits {
        /// Characters of `content` (R11.3).
        content_chars: usize = 10_000,
        /// Bytes of `content` as JSON text, escaping counted: with its envelope one legal message fits a frame of 64 KiB (rule 17).
        content_bytes: usize = 48 * 1024,
        /// Characters of `subject`: a title, not a second body.
        subject_chars: usize = 200,
        /// Bytes of `metadata`: the sender's labels; data belongs in media.
        metadata_bytes: usize = 4 * 1024,
        /// How far ahead `send_at` may lie, ms: 30 days, as long as history is kept.
        send_at_ahead_ms: u64 = 30 * 24 * 3_600_000,
        /// How long a message is kept and its key holds, ms: 30 days.
        retention_ms: u64 = 30 * 24 * 3_600_000,
    }
}

limits! {
    /// The door: what is taken in at once, and from whom.
    DoorLimits {
        /// Bytes of one JSON request body: one message of the largest kind with room for escaping.
        body_bytes: usize = 128 * 1024,
        /// Items of one batch request; a longer stream is cut into several by its sender.
        batch_items: usize = 100_000,
        /// Bytes of one batch request, read as a stream and never held whole.
        batch_bytes: usize = 256 * 1024 * 1024,
        /// Items of a batch that wait for the log at once: bounds the memory of one request.
        batch_window: usize = 1_000,
        /// Recipients of one broadcast (rule 13).
        broadcast_recipients: usize = 100_000,
        /// Bytes of one broadcast request (rule 13).
        broadcast_bytes: usize = 16 * 1024 * 1024,
        /// Waiting messages of a lane from which on new work of that lane is slowed with 429 (R5.4).
        lane_slow: u64 = 10_000,
        /// Waiting messages of a lane from which on new work of that lane is refused with 503 (R5.4).
        lane_full: u64 = 100_000,
        /// Messages a person may send in a minute (R5.5).
        person_per_minute: u32 = 100,
        /// Messages a person may send in an hour (R5.5).
        person_per_hour: u32 = 1_000,
        /// Messages a second of one tenant's server keys: its own quota, half of the system's (rule 12).
        server_per_second: u32 = 5_000,
        /// Messages a second, all tenants together (R5.5).
        system_per_second: u32 = 10_000,
        /// Requests in work at once: past that 503 with Retry-After.
        concurrent_requests: usize = 10_000,
        /// Time a request may take to arrive, ms: a slower client is cut.
        request_ms: u64 = 30_000,
        /// Time the head of a request may take to arrive, ms: ends a slow-loris.
        head_ms: u64 = 10_000,
        /// Time a batch stream may stand still, ms.
        idle_body_ms: u64 = 15_000,
        /// Keys remembered for 24 h to refuse the same key with another body at the door (best effort; history knows the rest).
        known_keys: u64 = 200_000,
        /// Answers of the numbering-plan check remembered: the same numbers come often, and a check costs microseconds.
        known_phones: u64 = 100_000,
        /// Verified tokens remembered until they end.
        known_tokens: u64 = 10_000,
        /// Holders of a quota remembered, a quota; the least recently seen one is forgotten first, about 200 bytes each.
        quota_holders: u64 = 100_000,
        /// Broadcasts a minute of one tenant: a quota of their own (rule 13).
        broadcasts_per_minute: u32 = 60,
        /// Broadcasts of one tenant that are accepted and not done; one more is refused. A door counts those that it last saw
        /// running and those that it took in since, so that several doors may let a few more pass. Each process that expands
        /// holds the content of all, up to 60 KiB each.
        broadcasts_running: usize = 100,
        /// Broadcast requests read at once: each may hold `broadcast_bytes`.
        broadcasts_at_once: usize = 4,
        /// Refused recipients that the answer to a broadcast lists; the rest are counted.
        broadcast_rejected: usize = 100,
        /// Batches in work at once: each may hold `batch_answer_bytes`.
        batches_at_once: usize = 128,
        /// Bytes of answers kept for the sender of a batch that reads only after it has sent everything.
        batch_answer_bytes: usize = 8 * 1024 * 1024,
        /// How long a batch is held back while its lane is slow or a quota a second is used up, ms; after that its items are
        /// refused.
        batch_wait_ms: u64 = 5_000,
        /// How often the door asks how much waits in each lane, ms; five times seldomer while less than a quarter of `lane_slow` waits.
        lane_poll_ms: u64 = 100,
        /// Connections of the HTTP listener; each holds a descriptor.
        connections: usize = 15_000,
    }
}

limits! {
    /// The dataflow: what is in flight, and how long it is tried.
    FlowLimits {
        /// Messages of a batch (R5.3).
        batch: usize = 100,
        /// How long a batch waits for more once enough batches are in flight, ms.
        linger_ms: u64 = 2,
        /// Batches in flight below which a batch does not wait to be full.
        eager_batches: usize = 4,
        /// Batches in flight at once over all lanes: the sinks' credits (rule 4).
        credits: usize = 32,
        /// Messages in flight of one lane and instance; at the bound its partitions are paused.
        in_flight: usize = 16_384,
        /// Bytes in flight of one lane and instance; at the bound its partitions are paused.
        in_flight_bytes: usize = 64 * 1024 * 1024,
        /// Records read from the log at once.
        fetch_records: usize = 1_000,
        /// Bytes read from the log at once.
        fetch_bytes: usize = 4 * 1024 * 1024,
        /// Ids the dedupe window remembers, an instance: presized, about 32 MB a million.
        window_ids: usize = 500_000,
        /// How long the dedupe window remembers an id, ms; older keyed ones are asked of history.
        window_ms: u64 = 10 * 60_000,
        /// Inbox tails kept in memory, an instance; a forgotten one is read again.
        tails: usize = 200_000,
        /// Of ten credits, at least so many go to Low while Low waits: it is never starved.
        low_share_of_ten: usize = 1,
        /// Batches that Normal may have in flight while High keeps coming: enough for its full rate, and a few milliseconds of
        /// work that stands before an urgent one.
        normal_beside_urgent: usize = 4,
        /// Batches that Low may have in flight while High or Normal keep coming: one goes on at most of its rate, and every
        /// further one stands before an urgent message in each of its syncs.
        low_beside_urgent: usize = 1,
        /// How long after the last urgent batch urgent messages count as coming, ms: ten of them at 100 a second.
        urgent_ms: u64 = 100,
        /// The first retry delay, ms; the others are 2, 4, 8, 16 and 32 times it.
        retry_first_ms: u64 = 1_000,
        /// How long a device may take to acknowledge what it was sent, ms.
        ack_ms: u64 = 30_000,
        /// Acknowledgements waited for at once, an instance: beyond that the oldest are judged by the status alone.
        ack_watch: usize = 1_000_000,
        /// How long a node may take to answer a delivery, ms.
        deliver_ms: u64 = 5_000,
        /// How long a write to history may take before it is repeated, ms.
        record_ms: u64 = 10_000,
        /// How long log or history, which the dataflow cannot do without, are left alone once their breaker is open, ms; then
        /// one call tries. Short, because nothing else is refused meanwhile and all that waits flows when they are back.
        store_open_ms: u64 = 1_000,
        /// How long presence may take to say where users are, ms; past that they count as unknown and the inbox has it.
        locate_ms: u64 = 1_000,
        /// Users whose place could not be asked, remembered to be offered their newest message once it can; past that catch-up alone has it.
        unlocated: usize = 100_000,
        /// Tenants that metrics name, an instance: the first so many; the rest are told together as `other`.
        tenants_named: usize = 100,
        /// How often a device that comes back in the middle of an attempt is given the whole acknowledgement time again.
        ack_renewals: u8 = 3,
        /// How often the due-table is looked at, ms.
        due_every_ms: u64 = 500,
        /// Rows of the due-table taken at once.
        due_rows: usize = 1_000,
        /// How long leaving a partition may take, ms: well under a consumer's poll interval.
        drain_ms: u64 = 10_000,
        /// How often offsets are committed, ms.
        commit_every_ms: u64 = 100,
        /// Facts merged by one call: one write to history, and the memory it takes.
        settle_facts: usize = 4_096,
        /// How long facts wait for those that follow them while many come, ms: sent and delivered of one message then fold into one write.
        settle_linger_ms: u64 = 10,
        /// How often each partition is looked through for what retention has passed, ms.
        retain_every_ms: u64 = 1_000,
        /// Entries that one look of retention removes at most: old messages go in small steps and delay nobody.
        retain_rows: usize = 1_000,
        /// How long a wall clock that jumped forward by more than five minutes has to stand there before messages are sent and expire by it, ms: time to mend it, and a machine that slept or started with a clock that was behind goes on by itself.
        jump_send_ms: u64 = 600_000,
        /// The same before retention removes by it, ms: a day, because nothing brings back what was removed, and keeping it costs room alone.
        jump_remove_ms: u64 = 24 * 3_600_000,
    }
}

limits! {
    /// A socket.
    SocketLimits {
        /// Bytes of one message and one frame from a client, and the most one frame to it holds (rule 17).
        frame_bytes: usize = 64 * 1024,
        /// Items of one `messages` frame (rule 17).
        frame_items: usize = 100,
        /// Bytes of the read buffer: tungstenite's default of 128 KiB costs 137 KB a connection, 1 KiB about 3.
        read_buffer_bytes: usize = 1024,
        /// Bytes written before the socket must have taken some: a reader that stops reading is closed.
        write_buffer_bytes: usize = 256 * 1024,
        /// How long a write may stand still before the session is closed with "come back", ms.
        write_ms: u64 = 10_000,
        /// Messages sent and not yet acknowledged; past that the session stops sending and reads on from history later.
        unacked: usize = 1_000,
        /// Deliveries waiting in a session's mailbox; past that it reads them from history.
        mailbox: usize = 256,
        /// Between heartbeats, ms.
        heartbeat_ms: u64 = 25_000,
        /// Without any frame from the client for so long, its session is closed, ms.
        silent_ms: u64 = 75_000,
        /// Sessions of this node; past that a connection is refused with 503.
        sessions: usize = 15_000,
        /// Sessions of one user: devices a person can own.
        sessions_per_user: usize = 20,
        /// How long a session's presence holds without being refreshed, ms (R7.3).
        presence_ms: u64 = 300_000,
        /// Frames a second from one client; a storm is closed.
        frames_per_second: u32 = 100,
        /// Ids of one `ack` or `read` frame.
        ids_per_frame: usize = 1_000,
        /// Facts are gathered so long before they go to the log, ms: one cursor acknowledgement of many devices is one record.
        gather_ms: u64 = 5,
        /// Facts gathered at once; past that sessions wait.
        gather_facts: usize = 50_000,
        /// Clients are told to come back within this time when a node drains, ms, each at a random moment.
        drain_ms: u64 = 10_000,
        /// Status notes waiting for one sender's session; dropped past that (rule 16).
        notes: usize = 256,
        /// Chat messages of one session that wait for the log at once; past that the next is refused and may be repeated.
        sends: usize = 32,
        /// Signals (typing, read, presence) waiting for one session; past that typing goes first, then what is newest.
        signals: usize = 64,
    }
}

limits! {
    /// Conversations.
    ChatLimits {
        /// How long one's own message may be edited or deleted, ms: long enough to correct a mistake, too short to rewrite history.
        edit_ms: u64 = 15 * 60_000,
        /// How often one message may be edited: each edit is a row that readers of the message pass.
        edits: u32 = 20,
        /// Characters of the last message that a list shows (R3.3).
        preview_chars: usize = 100,
        /// `Read` facts of one record: what one mark says is told in pieces that fit a record.
        receipts: usize = 500,
        /// Conversations kept in memory by their owner, an instance; a forgotten one is read again.
        kept: usize = 50_000,
        /// How long the door waits for a chat write to be recorded before it answers 202, ms (rule 14).
        answer_ms: u64 = 500,
        /// Least time between two `typing` frames that one session sends on in one conversation, ms; those between are dropped.
        typing_ms: u64 = 1_000,
        /// Conversations in which one session's `typing` is sent on within `typing_ms`: a person types in one, and changes now and then.
        typing_rooms: usize = 4,
        /// How long nobody is told that a user has gone, ms: a phone that loses its line for a moment has not.
        away_ms: u64 = 5_000,
        /// Comings and goings that wait to be told, a node; past that they are dropped and counted.
        comings: usize = 4_096,
        /// Conversations, the most recent ones, whose other side is told that a user came or went: bounds the fan-out.
        peers: usize = 100,
        /// Turns of one conversation, and conversations of one list, that the cache keeps (R8.1); longer pages are read from
        /// history.
        cache_turns: usize = 50,
        /// How long the cache keeps a conversation's turns and a list, ms (R8.1).
        cache_ms: u64 = 300_000,
        /// Memory of the cache in this process, bytes: about a thousand busy conversations; the least recently used goes first.
        cache_bytes: usize = 64 * 1024 * 1024,
        /// Bytes of one page that is kept: ten times a usual one; a thread of the longest texts is read from history.
        cache_page_bytes: usize = 512 * 1024,
    }
}

limits! {
    /// The embedded store and the log.
    StoreLimits {
        /// Partitions, fixed when an installation is created.
        partitions: u16 = 24,
        /// Appends waiting for the commit group; callers past that wait in line.
        queue: usize = 4_096,
        /// Writes of one commit group.
        group_writes: usize = 16_384,
        /// Bytes of one commit group.
        group_bytes: usize = 8 * 1024 * 1024,
        /// Least time from one sync to the next at load, ms, and half of it while groups are small: a lone writer never waits.
        group_every_ms: u64 = 2,
        /// Memory of the block cache, bytes.
        cache_bytes: u64 = 64 * 1024 * 1024,
        /// Records kept in memory after they were appended, bytes: a consumer that keeps up never touches the disk.
        tail_bytes: usize = 32 * 1024 * 1024,
        /// Bytes of a segment of the log: what retention removes at once.
        segment_bytes: u64 = 128 * 1024 * 1024,
        /// How long a node counts as living after its heartbeat, ms: three heartbeats of 15 s.
        node_ms: u64 = 45_000,
        /// How long log records are kept after every group has read them, ms.
        log_retention_ms: u64 = 7 * 24 * 3_600_000,
        /// Bytes of log kept after every group has read them.
        log_retention_bytes: u64 = 8 * 1024 * 1024 * 1024,
        /// Free bytes below which new work is refused with 507, so that what was accepted can still be finished.
        free_bytes: u64 = 256 * 1024 * 1024,
        /// How long dead letters are kept, ms: 7 days (R4.5).
        dead_ms: u64 = 7 * 24 * 3_600_000,
        /// How long a CQL cluster may take to answer a request, ms: less than `flow.record_ms`, so that a write is repeated by whoever knows most.
        cql_ms: u64 = 3_000,
        /// Requests on their way to a CQL cluster at once: what a cluster in trouble makes wait, waits here.
        cql_requests: usize = 256,
        /// Messages whose status is kept in memory beside a CQL cluster while facts about them come in, about 400 bytes each; others are read.
        cql_states: usize = 100_000,
        /// KiB of records on their way to Kafka, a record at least one; appends past that wait in line.
        kafka_queue_kib: u32 = 64 * 1024,
        /// How long records wait for others to go to Kafka with, ms: a broker's cost goes by requests.
        kafka_linger_ms: u64 = 3,
        /// How long an append to Kafka may take, ms: longer than brokers need to agree on a new leader.
        kafka_append_ms: u64 = 20_000,
        /// How long one question to Kafka, one read or one commit may take, ms.
        kafka_ask_ms: u64 = 5_000,
        /// Bytes of one record in Kafka: the facts of one partition of one moment fit.
        kafka_record_bytes: usize = 8 * 1024 * 1024,
        /// KiB that a member fetches ahead of each partition: the memory of a backlog, and what a takeover fetches again.
        kafka_prefetch_kib: usize = 512,
        /// Threads that read from anywhere in Kafka (events, tail), each one partition at a time.
        kafka_readers: usize = 4,
        /// How long a member waits for its partitions to be released before it gives them up, ms: longer than `drain_ms` and the last commit, which takes half of that at most.
        kafka_release_ms: u64 = 20_000,
        /// Without a sign of life for so long a member is dead, ms: for brokers before 4.0, where members say it.
        kafka_session_ms: u64 = 6_000,
    }
}

limits! {
    /// What leaves for the world: breakers, notes to senders, notices to administrators.
    SinkLimits {
        /// Failures in a row that open the breaker of a node or of a notice (R6.2).
        breaker_failures: u32 = 5,
        /// Share of a window's calls, in percent, whose failure opens a breaker (R6.2).
        breaker_percent: u32 = 50,
        /// Calls of a window below which the share says nothing.
        breaker_calls: u32 = 20,
        /// Length of a breaker's window, ms.
        breaker_window_ms: u64 = 10_000,
        /// How long an open breaker of a notice refuses before it lets one call try, ms (R6.2).
        breaker_open_ms: u64 = 30_000,
        /// The same of a node, ms: short, because those who are connected to it see nothing meanwhile.
        node_open_ms: u64 = 2_000,
        /// Breakers kept at once: only nodes that failed lately have one; past that a failing node is simply asked again.
        breakers: usize = 1_024,
        /// Calls that tell senders of changes, at once; past that their notes are dropped and counted (rule 16).
        notify_calls: usize = 8,
        /// How long one such call may take, ms.
        notify_ms: u64 = 1_000,
        /// How long a notice to administrators may take, ms.
        notice_ms: u64 = 5_000,
        /// Least time between two notices of one target, ms: what comes in between is told as one, with a count.
        notice_every_ms: u64 = 1_000,
        /// Dead letters named in one notice; the count says how many there were, and the dead-letter list has them all.
        notice_letters: usize = 100,
    }
}

limits! {
    /// Redis: presence, the way between nodes, shared quotas.
    RedisLimits {
        /// How long a command may take before Redis counts as away, ms: slow is as bad as dead. Below `limits.flow.locate_ms`, so that
        /// whoever asks learns it from here.
        command_ms: u64 = 700,
        /// The longest wait between two attempts to reach a Redis that is away, ms; the first comes at once.
        reconnect_ms: u64 = 1_000,
        /// How old the list of living nodes may be when users are located, ms.
        nodes_ms: u64 = 1_000,
        /// Least time between two frames to one node while hints keep coming, ms: what comes in between travels together, and a lone
        /// hint never waits.
        frame_every_ms: u64 = 3,
        /// Bytes of hints from which on a frame takes no more: it stays well below what Redis keeps for a slow reader.
        frame_bytes: usize = 256 * 1024,
        /// Parts waiting to be sent to one node; past that its deliveries fail and are tried again.
        outbox: usize = 1_024,
        /// Deliveries waiting for a node's answer, a process.
        asks: usize = 4_096,
        /// How long an answer may be missing before the hints are sent again, ms; doubles each time, until the delivery's deadline.
        resend_ms: u64 = 300,
        /// Frames that came and wait for this node; past that they are dropped and sessions compare with their inboxes.
        inbound: usize = 512,
        /// Answers a node remembers, so that hints that were sent again are answered and not offered twice.
        answered: usize = 4_096,
        /// A door leases quota tokens for so long ahead, ms: a twentieth of the shortest window, so that doors share it closely.
        lease_ms: u64 = 50,
        /// Quota holders whose leases a door remembers; the others ask Redis anew.
        holders: usize = 100_000,
    }
}

/// All bounds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// One message.
    pub message: MessageLimits,
    /// The door.
    pub door: DoorLimits,
    /// The dataflow.
    pub flow: FlowLimits,
    /// A socket.
    pub socket: SocketLimits,
    /// Conversations.
    pub chat: ChatLimits,
    /// The embedded store and the log.
    pub store: StoreLimits,
    /// What leaves for the world.
    pub sink: SinkLimits,
    /// Redis.
    pub redis: RedisLimits,
}

impl Limits {
    /// Each group with its keys and their documentation, in the order of the fields.
    pub const GROUPS: &'static [(&'static str, &'static [(&'static str, &'static str)])] = &[
        ("message", MessageLimits::KEYS),
        ("door", DoorLimits::KEYS),
        ("flow", FlowLimits::KEYS),
        ("socket", SocketLimits::KEYS),
        ("chat", ChatLimits::KEYS),
        ("store", StoreLimits::KEYS),
        ("sink", SinkLimits::KEYS),
        ("redis", RedisLimits::KEYS),
    ];
}

/// Rows of one page when the caller names no number.
pub const PAGE_DEFAULT: usize = 50;
/// Rows of one page at most: a page fits a phone's memory and a frame's time.
pub const PAGE_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_says_its_reason() {
        for (group, keys) in Limits::GROUPS {
            for (key, doc) in *keys {
                assert!(doc.trim().len() > 10, "limit {group}.{key} has no documentation");
            }
        }
    }

    #[test]
    fn the_groups_name_every_limit() {
        let all = serde_json::to_value(Limits::default()).unwrap();
        let all = all.as_object().unwrap();
        assert_eq!(all.len(), Limits::GROUPS.len());
        for (group, keys) in Limits::GROUPS {
            let fields = all[*group].as_object().unwrap();
            assert_eq!(fields.len(), keys.len());
            assert!(keys.iter().all(|(key, _)| fields.contains_key(*key)));
        }
    }

    #[test]
    fn an_unknown_limit_is_refused() {
        let wrong = serde_json::from_str::<Limits>(r#"{"door":{"body_byte":1}}"#);
        assert!(wrong.unwrap_err().to_string().contains("body_byte"));
    }
}
