//! One owner of a partition number in all topics, whoever joins, leaves, dies or sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use schemas::{
    Offset, Partition, Priority, Topic, TopicPartition,
    port::{Append, Consumer, Event, Fetch, Group, Headers, Log as _, PortError},
    tier::Tier,
};

use super::*;

const GROUP: Group = Group("esh3ar.pipeline");
const MAX: Fetch = Fetch { records: 100, bytes: 1 << 20 };
const PATIENCE: Duration = Duration::from_secs(30);

fn topics_read() -> Vec<Topic> {
    let lanes = Priority::ALL.into_iter().map(Topic::Lane);
    lanes.chain(Tier::ALL.into_iter().map(Topic::Retry)).chain([Topic::Outcomes]).collect()
}

/// One record in every topic of every number.
async fn one_each(log: &KafkaLog) {
    let records = topics_read().into_iter().flat_map(|topic| {
        (0..PARTITIONS).map(move |p| Append {
            at: TopicPartition { topic, partition: Partition(p) },
            headers: Headers::default(),
            body: "x".into(),
        })
    });
    for outcome in log.append(records.collect()).await {
        outcome.unwrap();
    }
}

/// Who has which number, as the members were told.
#[derive(Default)]
struct Register {
    owners: Mutex<BTreeMap<Partition, usize>>,
    reads: Mutex<BTreeSet<(usize, TopicPartition)>>,
}

/// A member that takes what it is given, releases what is asked back, and is told to end.
async fn member(log: Arc<KafkaLog>, who: usize, register: Arc<Register>, mut end: tokio::sync::watch::Receiver<bool>) {
    let mut member = log.join(GROUP, &topics_read()).await.unwrap();
    loop {
        let event = tokio::select! {
            event = member.poll(MAX) => event.unwrap(),
            _ = end.wait_for(|end| *end) => break,
        };
        match event {
            Event::Assigned(partitions) => {
                for partition in partitions {
                    let before = register.owners.lock().insert(partition, who);
                    assert_eq!(before, None, "{partition} has two owners");
                }
            }
            Event::Revoked(partitions) => {
                for partition in &partitions {
                    assert_eq!(register.owners.lock().remove(partition), Some(who));
                }
                register.reads.lock().retain(|(reader, at)| *reader != who || !partitions.contains(&at.partition));
                member.release(&partitions).await.unwrap();
            }
            Event::Records(records) => {
                for record in records {
                    assert_eq!(register.owners.lock().get(&record.at.partition), Some(&who), "a record of another's");
                    register.reads.lock().insert((who, record.at));
                }
            }
        }
    }
    register.owners.lock().retain(|_, owner| *owner != who);
    register.reads.lock().retain(|(reader, _)| *reader != who);
    member.leave().await.unwrap();
}

/// Until everything is owned by so many, nearly evenly, and each owner read its numbers in every topic.
async fn settled(register: &Register, members: usize) {
    let all = usize::from(PARTITIONS) * topics_read().len();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut of = BTreeMap::<usize, usize>::new();
        register.owners.lock().values().for_each(|who| *of.entry(*who).or_default() += 1);
        let even = of.values().max().zip(of.values().min()).is_some_and(|(most, least)| most - least <= 1);
        let owned = of.values().sum::<usize>() == usize::from(PARTITIONS) && of.len() == members && even;
        if owned && register.reads.lock().len() == all {
            return;
        }
        assert!(Instant::now() < deadline, "{members} members: {of:?}, {} read of {all}", register.reads.lock().len());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn a_number_is_never_split_or_doubled(options: &str) {
    let address = installation(options).await;
    let log = open(&address).await.unwrap();
    one_each(&log).await;
    let register = Arc::new(Register::default());
    let mut members = Vec::new();
    for (who, count) in [(0, 1), (1, 2), (2, 3)] {
        let (end, ended) = tokio::sync::watch::channel(false);
        // Each reads through a client of its own, as processes do.
        let log = open(&address).await.unwrap();
        members.push((end, tokio::spawn(member(log, who, register.clone(), ended))));
        settled(&register, count).await;
    }
    for left in [2, 1] {
        let (end, task) = members.remove(0);
        end.send_replace(true);
        task.await.unwrap();
        settled(&register, left).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_never_split_or_doubled_where_brokers_assign() {
    a_number_is_never_split_or_doubled("group=consumer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_is_never_split_or_doubled_where_members_assign() {
    a_number_is_never_split_or_doubled("group=classic").await;
}

/// Polls until it is told something.
async fn told(member: &mut dyn Consumer) -> Event {
    let told = async {
        loop {
            match member.poll(MAX).await.unwrap() {
                Event::Records(_) => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap()
}

/// Started by the tests below as a process of its own: joins, says what it is told, and tries to commit once a line comes in: a
/// commit that changes nothing, as an owner asks whether it still is one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of other tests"]
async fn a_member_as_a_process() {
    let Ok(address) = std::env::var("ESH3AR_TEST_MEMBER") else { return };
    let log = open(&Address::parse(&address).unwrap()).await.unwrap();
    let mut member = log.join(GROUP, &topics_read()).await.unwrap();
    let Event::Assigned(partitions) = told(&mut *member).await else { panic!("an assignment was due") };
    println!("\nassigned {}", partitions.len());
    let mut line = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut line)).await.unwrap().unwrap();
    let at = TopicPartition { topic: Topic::Outcomes, partition: partitions[0] };
    let mut commit = member.commit(&[(at, Offset(0))]).await;
    // It may not know yet that it was asleep.
    while matches!(commit, Err(PortError::Unavailable(_) | PortError::Unknown(_))) {
        commit = member.commit(&[(at, Offset(0))]).await;
    }
    println!(
        "commit {}",
        if matches!(commit, Err(PortError::Fenced(_))) { "fenced".into() } else { format!("{commit:?}") }
    );
    let Event::Revoked(lost) = told(&mut *member).await else { panic!("a revocation was due") };
    println!("\nrevoked {}", lost.len());
}

struct Process {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Process {
    fn start(address: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kafka::group::a_member_as_a_process", "--ignored", "--nocapture", "--test-threads", "1"])
            .env("ESH3AR_TEST_MEMBER", address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that begins so.
    fn says(&mut self, begin: &str) -> String {
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .find(|line| line.starts_with(begin))
            .unwrap_or_else(|| panic!("no {begin}"))
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_partitions_of_a_killed_process_flow_again_within_ten_seconds() {
    let prefix = prefix();
    let text = format!("kafka://{}/{prefix}", stack::kafka().await.hosts());
    let address = Address::parse(&text).unwrap();
    topics::create(&address, &limits()).await.unwrap();
    let log = open(&address).await.unwrap();
    one_each(&log).await;
    let mut process = Process::start(&text);
    process.says("assigned 4");
    let mut heir = log.join(GROUP, &topics_read()).await.unwrap();
    process.signal(rustix::process::Signal::KILL);
    let begun = Instant::now();
    let mut owned = 0;
    while owned < usize::from(PARTITIONS) {
        if let Event::Assigned(partitions) = told(&mut *heir).await {
            owned += partitions.len();
        }
    }
    let took = begun.elapsed();
    println!("a killed member's partitions were taken over after {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_slept_through_its_session_is_fenced() {
    let prefix = prefix();
    let text = format!("kafka://{}/{prefix}", stack::kafka().await.hosts());
    let address = Address::parse(&text).unwrap();
    topics::create(&address, &limits()).await.unwrap();
    let log = open(&address).await.unwrap();
    one_each(&log).await;
    let mut process = Process::start(&text);
    process.says("assigned 4");
    process.signal(rustix::process::Signal::STOP);
    let mut heir = log.join(GROUP, &topics_read()).await.unwrap();
    let mut owned = 0;
    while owned < usize::from(PARTITIONS) {
        if let Event::Assigned(partitions) = told(&mut *heir).await {
            owned += partitions.len();
        }
    }
    let outcomes = |p| TopicPartition { topic: Topic::Outcomes, partition: Partition(p) };
    process.signal(rustix::process::Signal::CONT);
    std::io::Write::write_all(process.child.stdin.as_mut().unwrap(), b"\n").unwrap();
    let heir = async {
        // It keeps polling, and gives up what the one that comes back is to have.
        loop {
            if let Event::Revoked(partitions) = told(&mut *heir).await {
                heir.release(&partitions).await.unwrap();
            }
        }
    };
    let sleeper = tokio::task::spawn_blocking(move || (process.says("commit"), process.says("revoked")));
    let (commit, revoked) = tokio::select! {
        said = sleeper => said.unwrap(),
        () = heir => unreachable!(),
    };
    assert_eq!((commit.as_str(), revoked.as_str()), ("commit fenced", "revoked 4"));
    let all: Vec<_> = (0..PARTITIONS).map(outcomes).collect();
    assert_eq!(log.committed(GROUP, &all).await.unwrap(), vec![None; all.len()], "it changed nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_released_in_time_is_given_up_and_commits_nothing() {
    let address = installation("").await;
    let short = StoreLimits { kafka_release_ms: 500, ..limits() };
    let log = KafkaLog::open(&address, &short, Arc::new(SystemClock::new())).await.unwrap();
    one_each(&log).await;
    let mut first = log.join(GROUP, &topics_read()).await.unwrap();
    assert!(matches!(told(&mut *first).await, Event::Assigned(all) if all.len() == 4));
    let mut second = log.join(GROUP, &topics_read()).await.unwrap();
    let Event::Revoked(asked) = told(&mut *first).await else { panic!("a revocation was due") };
    let Event::Assigned(given) = told(&mut *second).await else { panic!("an assignment was due") };
    assert_eq!(asked, given);
    let at = TopicPartition { topic: Topic::Outcomes, partition: asked[0] };
    let late = first.commit(&[(at, Offset(1))]).await;
    assert!(matches!(late, Err(PortError::Fenced(_))), "{late:?}");
    assert_eq!(log.committed(GROUP, &[at]).await.unwrap(), [None]);
    first.release(&asked).await.unwrap();
    let late = first.commit(&[(at, Offset(1))]).await;
    assert!(matches!(late, Err(PortError::Rejected(_))), "{late:?}");
}
