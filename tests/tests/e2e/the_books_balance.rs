//! Rule 10: accepted = unrecorded + pending + sent + delivered + read + failed, per tenant; asked of a running server and
//! read from the folder of a stopped one.

use std::process::Command;

use serde_json::{Value, json};
use tests::harness::{Business, Phone, Server, Settings, eventually, number};

#[tokio::test(flavor = "multi_thread")]
async fn running_and_stopped_the_books_say_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("data"), Settings::unmetered());
    let (acme, globex) = (Business::of(&server, "acme"), Business::of(&server, "globex"));
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    for n in 0..10 {
        acme.insist(&number(1), &n.to_string(), &format!("k{n}")).await;
        globex.send(&number(2), &n.to_string()).await;
    }
    phone.until_seen(10).await;
    let books = eventually("balanced books", async || {
        let (_, books) = server.admin("GET", "/admin/v1/books", None).await;
        let tenants = books["tenants"].as_object()?;
        let done = tenants.get("acme")?["delivered"] == 10 && tenants.get("globex")?["pending"] == 10;
        (done && books["balanced"] == true).then_some(books.clone())
    })
    .await;
    assert_eq!(books["total"]["accepted"], 20, "{books}");
    assert_eq!(server.terminate(), Some(0));
    let data = server.data.clone();
    let output =
        Command::new(tests::harness::binary()).args(["books", "--json", "--data"]).arg(&data).output().unwrap();
    let stopped: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    assert_eq!(stopped["total"], books["total"]);
    assert_eq!(stopped["balanced"], json!(true));
}
