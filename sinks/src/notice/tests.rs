//! What notices promise, against a webhook and a command of the test's own.

use proptest::prelude::*;
use schemas::{Epoch, Inbox, Partition, Position, time::ManualClock};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use super::*;

fn dead(n: i64, reason: Reason) -> Dead {
    Dead {
        id: MessageId::fresh(Timestamp(n)),
        at: Timestamp(n),
        reason,
        round: 0,
        attempts: 6,
        inbox: Inbox { user: "acme/+962790000001".parse().unwrap(), partition: Partition(3) },
        position: Position { epoch: Epoch(1), n: 1 },
        requeued_at: None,
        message: None,
    }
}

fn bells(notice: Notice) -> Vec<Arc<Bell>> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(Timestamp(0)));
    let limits = SinkLimits { notice_every_ms: 1, notice_letters: 3, ..SinkLimits::default() };
    Bell::of(notice, &clock, &limits)
}

/// Reads one request, answers it, and gives its body.
async fn answered(listener: &TcpListener, status: &str) -> serde_json::Value {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    while stream.read_line(&mut line).await.unwrap() > 2 {
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    answer(stream.get_mut(), status).await;
    serde_json::from_slice(&body).unwrap()
}

async fn answer(stream: &mut TcpStream, status: &str) {
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn r4_5_a_webhook_is_told_ids_reasons_and_counts_and_nothing_that_anyone_wrote() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/alarm", listener.local_addr().unwrap());
    let [bell] = bells(Notice::Webhook(url)).try_into().ok().unwrap();
    let letters: Vec<Dead> = (1..=5).map(|n| dead(n, if n == 1 { Reason::Expired } else { Reason::NoAck })).collect();
    bell.ring(&letters);
    let told = answered(&listener, "204 No Content").await;
    assert_eq!(told["event"], "dead_letters");
    assert_eq!(told["count"], 5);
    assert_eq!(told["reasons"], serde_json::json!({ "expired": 1, "no_ack": 4 }));
    assert_eq!(told["letters"].as_array().unwrap().len(), 3, "letters are bounded, the count is not");
    assert!(!told.to_string().contains("+962"), "no recipient is named: {told}");
}

#[tokio::test]
async fn what_a_webhook_refused_is_told_again_together_with_what_came_since() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let [bell] = bells(Notice::Webhook(url)).try_into().ok().unwrap();
    bell.ring(&[dead(1, Reason::NoAck)]);
    bell.ring(&[dead(2, Reason::NoAck)]);
    let first = answered(&listener, "503 Service Unavailable").await["count"].as_u64().unwrap();
    assert!(first <= 2);
    let mut total = 0;
    while total < 2 {
        total += answered(&listener, "200 OK").await["count"].as_u64().unwrap();
    }
    assert_eq!(total, 2);
}

#[tokio::test]
async fn a_command_reads_the_notice_on_its_standard_input() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Bash's own sockets: the command passes on what it reads.
    let script = format!("cat > /dev/tcp/127.0.0.1/{port}");
    let [bell] = bells(Notice::Command(vec!["bash".into(), "-c".into(), script])).try_into().ok().unwrap();
    bell.ring(&[dead(7, Reason::NodeUnreachable)]);
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut told = String::new();
    stream.read_to_string(&mut told).await.unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["count"], &told["since"]), (&1.into(), &"1970-01-01T00:00:00.007Z".into()));
}

#[tokio::test]
async fn a_command_that_cannot_run_is_an_answer_and_not_a_crash() {
    let [bell] = bells(Notice::Command(vec!["/nonexistent/program".into()])).try_into().ok().unwrap();
    let mut told = None;
    Told::add(&mut told, &[dead(1, Reason::NoAck)], 3);
    assert!(bell.tell(&told.unwrap()).await.is_err());
}

#[test]
fn a_notice_that_cannot_be_set_up_is_left_out() {
    assert!(bells(Notice::None).is_empty());
    assert!(bells(Notice::Webhook("ftp://example.org".into())).is_empty());
    assert!(bells(Notice::Command(Vec::new())).is_empty());
    let several =
        Notice::Several(vec![Notice::Command(vec!["true".into()]), Notice::Webhook("http://a.example/".into())]);
    assert_eq!(bells(several).len(), 2);
}

proptest! {
    /// However they come and whatever fails in between: the counts add up to the dead letters, the letters stay bounded.
    #[test]
    fn no_dead_letter_is_left_out_of_the_count(steps in proptest::collection::vec((0usize..6, any::<bool>()), 1..60)) {
        let (mut waiting, mut told, mut rung) = (None, 0, 0);
        for (n, ok) in steps {
            let letters: Vec<Dead> = (0..n).map(|i| dead(i as i64, Reason::NoAck)).collect();
            Told::add(&mut waiting, &letters, 3);
            rung += n as u64;
            let Some(notice) = waiting.take() else { continue };
            prop_assert!(notice.letters.len() <= 3 && notice.count == notice.reasons.values().sum::<u64>());
            if ok {
                told += notice.count;
            } else {
                Told::add(&mut waiting, &letters, 3);
                rung += n as u64;
                Told::put_back(&mut waiting, notice, 3);
            }
        }
        prop_assert_eq!(told + waiting.map_or(0, |w| w.count), rung);
    }
}
