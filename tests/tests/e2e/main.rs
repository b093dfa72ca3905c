//! End to end, on the real binary and real sockets: one promise a file.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]

#[path = "../../../clients/reference.rs"]
#[allow(dead_code, unreachable_pub)]
mod reference;

mod a_batch_answers_every_item;
mod a_broadcast_reaches_everyone_once;
mod a_business_user_catches_up_over_all_its_inboxes;
mod a_business_user_reads_its_inbox_without_a_socket;
mod a_busy_chat_survives_kill_9;
mod a_clock_that_jumps_loses_nothing;
mod a_conversation_goes_through_its_states;
mod a_conversation_is_held_in_the_terminal;
mod a_drain_loses_nobody;
mod a_folder_that_cannot_be_written_is_refused;
mod a_full_disk_refuses_and_loses_nothing;
mod a_message_arrives_and_is_acknowledged;
mod a_phone_that_never_acknowledges_stops_nobody;
mod a_repeated_send_is_one_message;
mod a_tenant_sees_only_its_own;
mod bad_input_costs_nothing_else;
mod chat_reaches_both_sides_live;
mod each_device_keeps_its_own_cursor;
mod history_is_read_from_any_place;
mod idle_connections_stay_alive;
mod later_means_later;
mod limits_are_named_when_hit;
mod offline_users_catch_up_in_order;
mod one_way_stays_one_way;
mod only_participants_see_a_conversation;
mod reference_clients_miss_nothing;
mod retention_is_told;
mod same_key_twice_is_delivered_once;
mod senders_are_told;
mod start_says_what_is_wrong;
mod the_books_balance;
mod the_clients_chat;
mod the_command_line_does_the_main_job;
mod the_rust_client_misses_nothing;
mod two_people_have_one_conversation;
mod typing_and_presence_stay_within_a_conversation;
mod unreached_messages_are_retried_then_buried;
mod unread_is_what_was_not_read;
mod what_was_said_can_be_changed_for_a_while;
