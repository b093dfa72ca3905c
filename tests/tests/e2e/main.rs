//! End to end, on the real binary and real sockets: one promise a file.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, clippy::disallowed_methods)]

mod a_batch_answers_every_item;
mod a_broadcast_reaches_everyone_once;
mod a_clock_that_jumps_loses_nothing;
mod a_drain_loses_nobody;
mod a_folder_that_cannot_be_written_is_refused;
mod a_full_disk_refuses_and_loses_nothing;
mod a_message_arrives_and_is_acknowledged;
mod a_phone_that_never_acknowledges_stops_nobody;
mod a_tenant_sees_only_its_own;
mod bad_input_costs_nothing_else;
mod each_device_keeps_its_own_cursor;
mod idle_connections_stay_alive;
mod later_means_later;
mod limits_are_named_when_hit;
mod offline_users_catch_up_in_order;
mod reference_clients_miss_nothing;
mod retention_is_told;
mod same_key_twice_is_delivered_once;
mod senders_are_told;
mod start_says_what_is_wrong;
mod the_books_balance;
mod the_command_line_does_the_main_job;
mod the_rust_client_misses_nothing;
mod unreached_messages_are_retried_then_buried;
