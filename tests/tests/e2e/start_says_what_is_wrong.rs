//! A start that cannot succeed says why, in a sentence, and touches nothing.

use tests::harness::{Business, Server, Settings, binary, number};

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let server = Server::start(&data, Settings::default());
    let said = Server::try_start(&data, Settings::default()).err().expect("refused").said;
    assert!(said.contains("in use by another esh3ar"), "{said}");
    Business::new(&server).send(&number(1), "still here").await;
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let settings = Settings { ports: Some((port, 0)), ..Settings::default() };
    let said = Server::try_start(&folder.path().join("data"), settings).err().expect("refused").said;
    assert!(said.contains(&port.to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-folder");
    std::fs::write(&file, "x").unwrap();
    let said = Server::try_start(&file, Settings::default()).err().expect("refused").said;
    assert!(said.contains("not-a-folder"), "{said}");
}

#[test]
fn the_address_of_a_server_is_no_data_folder_and_is_told_where_it_belongs() {
    let output =
        std::process::Command::new(binary()).args(["up", "--data", "kafka://localhost:9092"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("`stores.log`"), "{output:?}");
}

#[test]
fn an_unknown_setting_names_the_nearest_known_one() {
    let folder = tempfile::tempdir().unwrap();
    let said = Server::try_start(&folder.path().join("data"), Settings::default().with(["limits.flow.ack_mss=5"]))
        .err()
        .expect("refused")
        .said;
    assert!(said.contains("ack_ms"), "{said}");
}

#[test]
fn another_number_of_partitions_than_the_folder_was_made_with_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    drop(Server::start(&data, Settings::default()));
    let said =
        Server::try_start(&data, Settings::default().with(["limits.store.partitions=12"])).err().expect("refused").said;
    assert!(said.contains("24") && said.contains("12"), "{said}");
}

#[test]
fn an_end_that_was_asked_for_is_clean() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::default());
    assert_eq!(server.terminate(), Some(0), "{}", server.log());
}
