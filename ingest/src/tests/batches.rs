//! Batches: a result for each item, in order, whatever comes.

use bytes::Bytes;
use futures::StreamExt as _;
use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

fn stream(pieces: Vec<Vec<u8>>) -> Body {
    Body::from_stream(futures::stream::iter(pieces.into_iter().map(|p| Ok::<_, std::io::Error>(Bytes::from(p)))))
}

fn statuses(lines: &[Value]) -> Vec<u64> {
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["index"], i, "results are in the order of the items");
    }
    lines.iter().map(|line| line["status"].as_u64().unwrap()).collect()
}

#[tokio::test]
async fn lines_and_arrays_are_answered_item_by_item_in_order() {
    let house = House::new(open_limits());
    let items: Vec<_> = (0..2_345).map(draft).collect();
    let lines = items.join("\n");
    let array = format!("[{}]", items.join(" ,\n"));
    let bodies = [(LINES, lines), (("content-type", "application/json"), array)];
    for (header, body) in bodies {
        let pieces = body.as_bytes().chunks(1_009).map(<[u8]>::to_vec).collect();
        let answer = house.batch(&[header], stream(pieces)).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, "application/x-ndjson"));
        assert_eq!(answer.header("durability"), "disk");
        let lines = answer.lines();
        assert_eq!(statuses(&lines), vec![202; items.len()]);
        let messages = std::mem::take(&mut *house.log.records.lock());
        let ids: Vec<_> = messages.iter().map(|r| r.headers.id.unwrap().to_string()).collect();
        let answered: Vec<_> = lines.iter().map(|line| line["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ids, answered, "the log has them in the order of the items");
    }
}

#[tokio::test]
async fn many_items_are_few_appends() {
    let house = House::new(open_limits());
    let body = (0..2_000).map(draft).collect::<Vec<_>>().join("\n");
    assert_eq!(house.batch(&[LINES], body).await.lines().len(), 2_000);
    assert_eq!(house.log.calls.load(std::sync::atomic::Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_bad_item_costs_itself_only() {
    let house = House::new(open_limits());
    let long = format!(r#"{{"to":"+962790000001","content":"{}"}}"#, "x".repeat(200_000));
    let items = [&draft(1), "{", "not json", &long, r#"{"to":"12","content":"x"}"#, "", "  ", &draft(2)];
    let answer = house.batch(&[LINES], items.join("\r\n")).await;
    let lines = answer.lines();
    assert_eq!(statuses(&lines), [202, 400, 400, 413, 422, 202]);
    assert_eq!(lines[4]["problem"]["type"], "/problems/invalid-phone");
    assert_eq!(lines[3]["problem"]["detail"], "the item is larger than 131072 bytes");
    assert_eq!(house.log.messages().len(), 2);
}

#[tokio::test]
async fn the_same_stream_sent_again_changes_nothing() {
    let house = House::new(open_limits());
    let item = |n: usize| draft(n).replace('}', &format!(r#","key":"k{n}"}}"#));
    let body = (0..10).map(item).collect::<Vec<_>>().join("\n");
    let (first, again) = (house.batch(&[LINES], body.clone()).await, house.batch(&[LINES], body.clone()).await);
    let ids = |answer: &Answer| answer.lines().iter().map(|l| l["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&first), ids(&again));
    assert!(again.lines().iter().all(|line| line["replayed"] == true));
    assert_eq!(house.log.messages().len(), 10);
    let other = house.batch(&[LINES], item(3).replace("hello", "goodbye")).await.lines();
    assert_eq!(other[0]["problem"]["type"], "/problems/idempotency-conflict");
    let keyed = house.batch(&[LINES, ("idempotency-key", "k")], body).await;
    assert_eq!((keyed.status.as_u16(), keyed.slug().as_str()), (400, "invalid-header"));
}

#[tokio::test]
async fn a_broken_stream_answers_what_came_and_says_where_it_broke() {
    let house = House::new(open_limits());
    let pieces =
        [Ok(Bytes::from(draft(1) + "\n")), Ok(Bytes::from(draft(2) + "\n{\"to\"")), Err(std::io::Error::other("cut"))];
    let answer = house.batch(&[LINES], Body::from_stream(futures::stream::iter(pieces))).await;
    let lines = answer.lines();
    assert_eq!(statuses(&lines), [202, 202, 408]);
    assert_eq!(house.log.messages().len(), 2);

    let array = house.batch(&[], format!("[{},{} {}]", draft(1), draft(2), draft(3))).await.lines();
    assert_eq!(statuses(&array), [202, 202, 400]);
    assert!(array[2]["problem"]["detail"].as_str().unwrap().contains("comma"));
    let cut = house.batch(&[], format!("[{},{}", draft(1), &draft(2)[..9])).await.lines();
    assert_eq!(statuses(&cut), [202, 400]);
}

#[tokio::test]
async fn what_is_no_batch_is_refused_as_a_whole() {
    let house = House::new(open_limits());
    for body in ["", "{}", "nonsense", "[1"] {
        let answer = house.batch(&[], body).await;
        assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (400, "invalid-json"), "{body}");
    }
    let declared = house.batch(&[LINES, ("content-length", "1000000000")], "").await;
    assert_eq!((declared.status.as_u16(), declared.slug().as_str()), (413, "too-large"));
    for empty in ["[]", " [ ] "] {
        let answer = house.batch(&[], empty).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (200, ""));
    }
}

#[tokio::test]
async fn a_batch_ends_at_its_bounds() {
    let mut limits = open_limits();
    (limits.door.batch_items, limits.door.batch_bytes) = (5, 1_000_000);
    let house = House::new(limits);
    let lines = house.batch(&[LINES], (0..20).map(draft).collect::<Vec<_>>().join("\n")).await.lines();
    assert_eq!(statuses(&lines), [202, 202, 202, 202, 202, 413]);
    assert!(lines[5]["problem"]["detail"].as_str().unwrap().contains("more than 5 items"));
    assert_eq!(house.log.messages().len(), 5);
    let endless = futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b'\n'; 65_536])));
    let answer = house.batch(&[LINES], Body::from_stream(endless)).await;
    assert_eq!((answer.status.as_u16(), answer.slug().as_str()), (413, "too-large"));
}

/// Senders that read only after they have sent everything are answered; those that never read stop being read.
#[tokio::test]
async fn answers_wait_for_a_slow_reader_up_to_a_bound() {
    let mut limits = open_limits();
    limits.door.batch_answer_bytes = 64 * 1024;
    let house = House::new(limits);
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let endless = futures::stream::iter(0..90_000_usize).map(move |n| {
        count.store(n, std::sync::atomic::Ordering::SeqCst);
        Ok::<_, std::io::Error>(Bytes::from(draft(n % 1_000) + "\n"))
    });
    let request = request("POST", "/v1/messages/batch", &server(), &[LINES], Body::from_stream(endless));
    let response: Response = house.router.clone().oneshot(request).await.unwrap();
    // Let the batch run until it stands still: it has filled the answers that nobody reads.
    let mut last = usize::MAX;
    loop {
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 5_000, "{last} items were read for a sender that does not read");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body.iter().filter(|b| **b == b'\n').count(), 90_000, "once it reads, everything is answered");
}

#[tokio::test]
async fn a_sender_that_never_reads_is_cut_off_and_its_place_is_free_again() {
    let mut limits = open_limits();
    (limits.door.batch_answer_bytes, limits.door.idle_body_ms, limits.door.batches_at_once) = (1, 20, 1);
    let house = House::new(limits);
    let body = (0..2_000).map(draft).collect::<Vec<_>>().join("\n");
    let ask = || request("POST", "/v1/messages/batch", &server(), &[LINES], body.clone());
    let unread: Response = house.router.clone().oneshot(ask()).await.unwrap();
    let other = house.batch(&[LINES], draft(1)).await;
    assert_eq!((other.status.as_u16(), other.slug().as_str()), (503, "overloaded"));
    while house.batch(&[LINES], draft(1)).await.status != 200 {
        tokio::task::yield_now().await;
    }
    assert!(unread.into_body().collect().await.is_err(), "the answer breaks off and does not end");
}

#[tokio::test]
async fn a_closing_door_answers_what_it_has_taken_and_reads_no_further() {
    let house = House::new(open_limits());
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(receive));
    send.send(Ok(Bytes::from(draft(1) + "\n"))).await.unwrap();
    let response: Response =
        house.router.clone().oneshot(request("POST", "/v1/messages/batch", &server(), &[LINES], body)).await.unwrap();
    house.door.close().await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let lines: Vec<Value> =
        std::str::from_utf8(&bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(statuses(&lines), [202, 503]);
    assert_eq!(lines[1]["problem"]["type"], "/problems/draining");
}

/// Over a real socket: the whole batch is written before the first answer is read, as simple clients do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_writes_everything_before_it_reads_is_answered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = House::new(open_limits());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = house.router.clone();
    let server_task = tokio::spawn(async move { axum::serve(listener, router).await });
    let items = 40_000;
    let body = (0..items).map(draft).collect::<Vec<_>>().join("\n");
    let head = format!(
        "POST /v1/messages/batch HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/x-ndjson\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        server(),
        body.len()
    );
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{}", &answer[..200]);
    assert_eq!(answer.matches("\"status\":202").count(), items);
    assert_eq!(house.log.messages().len(), items);
    server_task.abort();
}

#[tokio::test]
async fn a_batch_is_held_to_a_quota_item_by_item() {
    let house = House::new(Limits::default());
    let sara = token_of("acme", "business:sara", all());
    let body = (0..150).map(draft).collect::<Vec<_>>().join("\n");
    let lines = house.post("/v1/messages/batch", &sara, &[LINES], body).await.lines();
    let want: Vec<u64> = (0..150).map(|n| if n < 100 { 202 } else { 429 }).collect();
    assert_eq!(statuses(&lines), want);
    assert_eq!(lines[149]["problem"]["field"], "person-minute");
    assert!(lines[149]["problem"]["retry_after_ms"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn a_full_disk_in_the_middle_of_a_batch_refuses_the_rest() {
    let house = House::new(open_limits());
    house.log.spared.store(3, std::sync::atomic::Ordering::SeqCst);
    *house.log.fault.lock() = Some(schemas::port::PortError::Full("no room".into()));
    let lines = house.batch(&[LINES], (0..5).map(draft).collect::<Vec<_>>().join("\n")).await.lines();
    assert_eq!(statuses(&lines), [202, 202, 202, 507, 507]);
}

#[test]
fn any_bytes_to_the_batch_door_are_answered_in_order_and_never_a_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let house = runtime.block_on(async { House::new(open_limits()) });
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        (0usize..100).prop_map(|n| draft(n).into_bytes()),
        (0usize..100).prop_map(|n| (draft(n) + "\n").into_bytes()),
        "[\\[\\]{},\n\" ]{0,4}".prop_map(String::into_bytes),
    ];
    let pieces = proptest::collection::vec(piece, 0..12);
    let mut runner = TestRunner::new(cases(500));
    runner
        .run(&(pieces, any::<bool>()), |(pieces, lines)| {
            let header = if lines { LINES } else { ("content-type", "application/json") };
            let whole = pieces.concat();
            let answer = runtime.block_on(house.batch(&[header], stream(pieces)));
            prop_assert!(answer.status == 200 || answer.status.is_client_error());
            if answer.status == 200 {
                let got = statuses(&answer.lines());
                prop_assert!(got.iter().all(|s| *s == 202 || (400..500).contains(s)), "{:?}", got);
                if lines {
                    let items = whole.split(|b| *b == b'\n').filter(|l| !l.iter().all(u8::is_ascii_whitespace));
                    prop_assert_eq!(got.len(), items.count());
                }
            }
            Ok(())
        })
        .unwrap();
}

proptest! {
    #[test]
    fn valid_items_are_all_accepted_in_order_however_the_stream_is_cut(
        count in 0usize..600,
        cuts in proptest::collection::vec(1usize..5_000, 0..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let house = House::new(open_limits());
            let body = format!("[{}]", (0..count).map(draft).collect::<Vec<_>>().join(","));
            let (mut pieces, mut rest) = (Vec::new(), body.as_bytes());
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                pieces.push(now.to_vec());
                rest = later;
            }
            pieces.push(rest.to_vec());
            let answer = house.batch(&[], stream(pieces)).await;
            assert_eq!(statuses(&answer.lines()), vec![202; count]);
            assert_eq!(house.log.messages().len(), count);
        });
    }
}
