//! The suite of the History port: every sentence of its contracts, for any adapter. A bug found in an adapter first becomes
//! a case here.
//!
//! An adapter's test binary says how it is installed and gets one test a case:
//! `tests::history_conformance!(embedded: install())`, where `install()` gives an [`Installation`].
//!
//! Cases make up tenants of their own, so one installation may serve many of them, also one that was used before.

pub mod broadcasts;
pub mod cached;
pub mod conversations;
pub mod cursors;
pub mod dead;
pub mod facts;
pub mod fencing;
pub mod inboxes;
pub mod kit;
pub mod lists;
pub mod overtaking;
pub mod people;
pub mod retention;
pub mod scheduled;
pub mod talking;

use std::sync::Arc;

use async_trait::async_trait;
use schemas::port::History;

/// One adapter, set up for tests.
#[async_trait]
pub trait Installation: Send + Sync {
    /// The history as it is open now.
    fn history(&self) -> Arc<dyn History>;

    /// A handle of its own to the same store, as another process has one; the same handle where one process has the store
    /// to itself.
    async fn another(&self) -> Arc<dyn History> {
        self.history()
    }

    /// Cases of a property of many steps; fewer where each step is a request to a server.
    fn cases(&self) -> u32 {
        100
    }

    /// Cases of a property that asks for thousands of pages in each; fewer where each page is a request to a server.
    fn long_cases(&self) -> u32 {
        100
    }

    /// Closes everything in order and opens it again, as a restart does.
    async fn restart(&mut self);

    /// Opens what a crash at this moment would leave: nothing was closed, nothing is finished.
    async fn crash(&mut self);
}

/// One test for each case of the suite, in a module named after the adapter.
#[macro_export]
macro_rules! history_conformance {
    ($adapter:ident: $install:expr) => {
        mod $adapter {
            #[allow(unused_imports)]
            use super::*;
            $crate::history_conformance! { @cases $install;
                inboxes::a_takeover_raises_the_epoch_and_it_stays_raised,
                inboxes::an_inbox_nobody_wrote_to_ends_at_the_start,
                inboxes::what_was_recorded_is_found_everywhere_and_survives_stop_and_crash,
                inboxes::the_same_entries_again_change_nothing,
                inboxes::a_reader_never_passes_a_break,
                inboxes::what_a_late_owner_wrote_is_not_in_the_inbox,
                inboxes::inboxes_whose_names_begin_alike_keep_apart,
                inboxes::records_in_flight_together_become_visible_in_order,
                inboxes::one_call_records_many_inboxes,
                inboxes::sizes_follow_what_is_kept,
                fencing::a_late_owner_adds_nothing,
                fencing::the_chain_holds_whoever_writes_late,
                fencing::a_reader_at_a_dead_entry_goes_on_after_the_fork,
                fencing::a_takeover_in_the_middle_of_writing_loses_nothing,
                fencing::a_takeover_that_the_log_does_not_confirm_shuts_nobody_out,
                fencing::a_batch_with_an_overtaken_partition_may_go_on_without_it,
                fencing::a_late_owner_takes_no_due_row_away_and_brings_none_back,
                fencing::retention_passes_over_what_a_late_owner_wrote,
                lists::pages_of_any_size_add_up_to_the_inbox,
                lists::one_way_history_reads_the_same_both_ways,
                lists::chat_is_not_in_the_one_way_history,
                lists::withdrawn_entries_keep_the_chain_whole,
                scheduled::a_scheduled_message_is_known_and_has_no_place,
                scheduled::due_rows_come_in_time_order_and_apart_by_partition,
                scheduled::a_sent_one_gets_its_place_and_does_not_come_up_again,
                scheduled::a_cancelled_one_is_still_found_by_its_id,
                scheduled::expiry_comes_up_when_it_is_due,
                scheduled::a_look_by_an_earlier_time_hides_nothing,
                scheduled::a_look_that_was_given_up_hides_nothing,
                retention::what_was_received_goes_and_what_was_not_is_told_first,
                retention::a_device_that_was_away_too_long_is_told_so,
                retention::numbering_goes_on_after_everything_went,
                retention::a_call_removes_no_more_than_asked_and_all_goes_in_the_end,
                retention::ids_without_a_place_go_too,
                retention::a_key_used_again_begins_anew,
                retention::a_key_scheduled_again_is_sent_as_it_is_now,
                facts::every_fact_has_its_outcome,
                facts::facts_before_the_message_are_kept,
                facts::settled_facts_survive_a_crash,
                facts::p3_p8_any_order_any_batches_any_repeats_give_the_merged_state,
                facts::p6_unread_is_what_was_not_read,
                facts::what_was_withdrawn_is_not_unread,
                facts::what_ended_before_it_was_recorded_is_never_seen_without_its_end,
                facts::an_end_is_counted_once_whatever_comes_before_and_after,
                cursors::a_moved_cursor_is_seen_at_once_and_survives_a_restart,
                cursors::cursors_of_users_and_devices_keep_apart,
                cursors::a_stored_cursor_only_grows,
                cursors::moves_at_once_lose_nothing,
                dead::newest_first_in_pages_of_any_size,
                dead::a_filter_takes_what_it_names,
                dead::burying_again_replaces_and_the_latest_round_is_found,
                dead::old_ones_are_forgotten_a_piece_at_a_time,
                conversations::a_conversation_nobody_opened_is_not_there,
                conversations::what_was_said_is_found_everywhere_and_survives_stop_and_crash,
                conversations::every_owner_is_told_how_far_the_lane_was_applied,
                conversations::the_same_batches_again_change_nothing,
                conversations::what_a_late_owner_wrote_is_not_in_the_conversation,
                conversations::p6_p10_lists_and_counts_are_what_happened,
                conversations::threads_read_the_same_both_ways_and_around_any_message,
                conversations::a_thread_shows_what_became_of_its_messages,
                conversations::a_message_is_around_in_its_own_conversation_alone,
                conversations::turns_go_with_their_messages_and_are_no_longer_unread,
                conversations::readers_see_whole_batches,
                overtaking::what_an_owner_was_told_of_conversations_stays,
                overtaking::what_stands_in_part_is_completed,
                overtaking::what_is_handed_over_late_is_not_in_the_new_inbox,
                overtaking::what_an_owner_was_told_of_an_inbox_without_its_row_stays,
                overtaking::who_read_before_and_writes_after_changes_nothing,
                overtaking::a_note_that_only_the_row_tells_of_is_completed,
                overtaking::a_conversation_that_was_told_not_to_be_there_is_not,
                cached::p10_what_the_cache_shows_is_what_history_shows,
                cached::r10_7_a_confirmed_write_is_seen_through_every_node_at_once,
                cached::r8_7_without_a_cache_everything_answers,
                cached::r8_1_a_page_that_holds_costs_one_look_and_no_page,
                cached::what_retention_takes_is_not_shown_from_the_cache,
                people::what_a_user_chose_stands_and_when_it_was_last_here_only_grows,
                broadcasts::a_broadcast_begins_once,
                broadcasts::recipients_come_in_order_from_anywhere,
                broadcasts::progress_grows_and_what_is_over_stays_so,
                broadcasts::running_ones_come_oldest_first_and_resume_after_a_crash,
            }
        }
    };
    (@cases $install:expr; $($part:ident::$case:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let mut installation = $install.await;
                $crate::conformance::history::$part::$case(&mut installation).await;
            }
        )*
    };
}
