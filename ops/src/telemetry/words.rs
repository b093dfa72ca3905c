//! What each metric means: told with every scrape, and held complete by a test that reads the sources.

/// Every metric with its meaning.
pub const METRICS: &[(&str, &str)] = &[
    ("esh3ar_accept_seconds", "Time from a single message's arrival to its durable acceptance."),
    ("esh3ar_accepted_total", "Messages accepted, by lane and tenant."),
    ("esh3ar_acknowledgements_waiting", "Messages sent to a device whose acknowledgement is waited for."),
    ("esh3ar_attempts_failed_total", "Delivery attempts that failed, by reason."),
    ("esh3ar_batch_messages", "Messages of a batch of the dataflow, by lane."),
    ("esh3ar_batches_total", "Batches of the dataflow, by lane."),
    ("esh3ar_breaker_open", "1 while this breaker refuses calls."),
    ("esh3ar_breaker_opened_total", "How often this breaker opened."),
    ("esh3ar_broadcasts_total", "Broadcasts accepted, by tenant."),
    ("esh3ar_buried_total", "Messages given up after their last attempt, by lane."),
    (
        "esh3ar_cache_reads_total",
        "Pages asked of the cache, by page and outcome: hit, miss, or old (it has changed since).",
    ),
    ("esh3ar_chat_commands_total", "What was asked of conversations and accepted, by command."),
    ("esh3ar_chat_seconds", "Time from a chat message's arrival over HTTP to its answer."),
    ("esh3ar_connections_refused_total", "Connections refused because every place was taken."),
    ("esh3ar_dead_letters", "Dead letters that nobody has requeued."),
    ("esh3ar_dead_total", "Messages that became dead letters, by reason."),
    ("esh3ar_deliveries_total", "Deliveries handed to nodes, by outcome."),
    ("esh3ar_delivery_seconds", "Time from a message's acceptance to its first acknowledgement by a device."),
    ("esh3ar_dependency_up", "1 while a dependency answers, 0 while it does not, by dependency."),
    ("esh3ar_facts_gathered_total", "Facts that sessions said and the log took."),
    ("esh3ar_facts_rejected_total", "Facts that the log or the history refused."),
    ("esh3ar_facts_unreadable_total", "Records of facts that could not be read."),
    ("esh3ar_history_reads_total", "Requests that read from a history of servers, by statement."),
    ("esh3ar_history_requests_total", "Requests that wrote rows to a history of servers."),
    (
        "esh3ar_history_rounds_repeated_total",
        "Writes to a history of servers that did not succeed and were repeated in their place.",
    ),
    ("esh3ar_history_rows_total", "Rows written to a history of servers."),
    ("esh3ar_http_request_seconds", "Time to answer a request, by listener, route, method and status."),
    ("esh3ar_http_requests_total", "Requests answered, by listener, route, method and status."),
    ("esh3ar_http_requests_under_way", "Requests being answered, by listener."),
    ("esh3ar_ingress_paused_topics", "Topics of businesses whose records wait."),
    ("esh3ar_ingress_records_total", "Records of businesses' topics, by outcome."),
    ("esh3ar_kept_messages", "Messages that history keeps."),
    ("esh3ar_lane_in_flight_messages", "Messages read from the log and not done, by lane."),
    ("esh3ar_lane_waiting", "Messages appended and not yet recorded, by lane."),
    ("esh3ar_messages_expired_total", "Messages whose time passed before anyone had them."),
    ("esh3ar_messages_status_total", "Changes of status, by the new status."),
    ("esh3ar_notes_dropped_total", "Status notes to senders dropped under pressure."),
    ("esh3ar_notices_total", "Notices to administrators, by target and result."),
    ("esh3ar_parked_total", "Messages whose recipient was not connected, by lane."),
    ("esh3ar_partitions_lost_total", "Partitions whose work was dropped because a newer owner was there."),
    ("esh3ar_port_retries_total", "Calls of a store repeated because it was away, by call."),
    ("esh3ar_recorded_total", "Messages given a place in an inbox, by lane."),
    ("esh3ar_refused_total", "Refusals, by the problem's code."),
    ("esh3ar_repeats_total", "Repeated messages dropped, by lane."),
    ("esh3ar_requeued_total", "Dead letters that were tried again."),
    ("esh3ar_retries_total", "Attempts that go to a retry tier, by lane."),
    ("esh3ar_retry_waiting_messages", "Messages that wait out a retry delay."),
    ("esh3ar_scheduled_messages", "Rows of the due-table: messages to be sent later, and expiries."),
    ("esh3ar_sessions", "Sockets held by this node."),
    ("esh3ar_sessions_closed_total", "Sockets closed by this node, by reason."),
    ("esh3ar_stage_seconds", "Time of a batch in a stage of the dataflow, by stage."),
    ("esh3ar_presence_dropped_total", "Comings and goings of users that nobody was told of."),
    ("esh3ar_signals_dropped_total", "Typing, marks and presence that a session had no room for."),
    ("esh3ar_status_notes_dropped_total", "Status notes that a sender's session had no room for."),
    ("esh3ar_store_groups_total", "Groups of writes of the embedded store."),
    ("esh3ar_store_syncs_total", "Syncs of the embedded store's journal."),
    ("esh3ar_store_writes_total", "Rows written by the embedded store."),
    ("esh3ar_store_written_bytes_total", "Bytes of keys and values written by the embedded store."),
    ("esh3ar_tenant_buried_total", "Messages given up after their last attempt, by lane and tenant."),
    ("esh3ar_tenant_in_flight_messages", "Messages read from the log and not done, by lane and tenant."),
    ("esh3ar_tenant_parked_total", "Messages whose recipient was not connected, by lane and tenant."),
    ("esh3ar_tenant_recorded_total", "Messages given a place in an inbox, by lane and tenant."),
    ("esh3ar_tenant_retries_total", "Attempts that go to a retry tier, by lane and tenant."),
    ("esh3ar_tenant_retry_waiting_messages", "Messages that wait out a retry delay, by lane and tenant."),
    ("esh3ar_tenant_scheduled_total", "Messages put aside to be sent later, by lane and tenant."),
    ("esh3ar_tenant_waiting_messages", "Of those, messages that wait for a batch, by lane and tenant."),
    ("esh3ar_unlocated_users", "Users who are offered their newest message once presence answers again."),
    ("esh3ar_unreadable_total", "Records of lanes or tiers that could not be read."),
];

/// Tells them to the recorder. The kind of each is known from its use; the words are kept by name alone.
pub(super) fn describe() {
    for (name, meaning) in METRICS {
        metrics::describe_counter!(*name, *meaning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, fs, path::Path};

    fn names(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                names(&path, found);
            } else if path.extension().is_some_and(|ext| ext == "rs") && !path.ends_with("telemetry/words.rs") {
                let text = fs::read_to_string(&path).unwrap();
                for macro_name in ["counter!(", "gauge!(", "histogram!("] {
                    for after in text.split(macro_name).skip(1) {
                        let name = after.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
                        found.extend(name.map(str::to_owned));
                    }
                }
            }
        }
    }

    #[test]
    fn every_metric_is_described_and_every_description_is_of_a_metric() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut found = BTreeSet::new();
        for part in ["ingest", "pipeline", "sinks", "stores", "gateway", "ops"] {
            names(&root.join(part).join("src"), &mut found);
        }
        let known: BTreeSet<String> = METRICS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(found, known, "describe new metrics in ops/src/telemetry/words.rs, and take out those that went");
        assert!(known.iter().all(|name| name.starts_with("esh3ar_")));
    }
}
