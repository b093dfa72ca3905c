//! Part "trouble" of chat: `kill -9` while a hundred pairs talk, again and again; afterwards both sides have the same
//! history, nothing is lost, nothing stands twice, and the counts are right.

use std::time::Duration;

use tests::{
    harness::{Person, Server, Settings, number},
    talk::Talk,
};

const PAIRS: u32 = 100;
const KILLS: u64 = 5;
/// Messages from one kill to the next.
const BETWEEN: u64 = 500;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pairs_lose_nothing_and_count_right() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::chatting().with(["limits.door.concurrent_requests=1000"]).on_fixed_ports();
    let mut server = Server::start(&folder.path().join("data"), settings);
    let people = |n: u32| [format!("business:b{n}"), number(n)].map(|name| Person::new(&server, &name));
    let talk = Talk::open((0..PAIRS).map(people).collect(), Duration::ZERO).await;
    let killing = async {
        for kill in 1..=KILLS {
            tests::harness::eventually("them to talk on", async || (talk.said() >= kill * BETWEEN).then_some(())).await;
            server.kill9();
            server = server.restart();
        }
        talk.stop();
        server
    };
    let ((), server) = tokio::join!(talk.write(), killing);
    let (_, wrong) = talk.until_right(false).await;
    assert!(wrong.is_empty(), "{wrong:#?}");
    let total = talk.said();
    assert!(total >= KILLS * BETWEEN, "they were busy: {total}");
    // Commands are no messages, and repeats are counted apart.
    tests::harness::eventually("balanced books", async || {
        let (_, books) = server.admin("GET", "/admin/v1/books", None).await;
        (books["balanced"] == true && books["total"]["accepted"] == total).then_some(())
    })
    .await;
}
