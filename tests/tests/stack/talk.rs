//! Chat on Kafka, Cassandra and Redis while its processes freeze and die: what `a_busy_chat_survives_kill_9` says of one
//! process, of several. The suite `cluster` of `./test`. Seeded: `ESH3AR_SEED` shows one run again, `ESH3AR_ROUNDS` makes it longer.

use std::time::{Duration, Instant};

use ops::{
    cluster::{Kind, Mode},
    compose::Role,
    drill::cluster::Fault,
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tests::{
    harness::{
        cluster::{Cluster, small},
        eventually, number,
    },
    talk::{Device, Talk},
};

const PHONES: usize = 20;
const BUSINESSES: usize = 4;
/// Phones that talk to two business users.
const BUSY: usize = 10;
/// About how long each writer rests.
const REST: Duration = Duration::from_millis(800);
/// Longer than a session of the brokers', which is 3 s, and than it takes to take over.
const FROZEN_S: u64 = 7;
/// Messages between two faults.
const BETWEEN: u64 = 200;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What befalls a process.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// It is held still in the middle of what it writes: its rows come late from there on.
    FreezesWhileItWrites,
    /// It is held still, and what it has written last reaches the history only when it goes on.
    FreezesAndItsRowsComeLate,
    Dies,
    GatewayDies,
}

impl Trouble {
    const ALL: [Self; 4] = [Self::FreezesWhileItWrites, Self::FreezesAndItsRowsComeLate, Self::Dies, Self::GatewayDies];

    async fn befall(self, cluster: &mut Cluster, rng: &mut StdRng) -> String {
        let role = if matches!(self, Self::GatewayDies) { Role::Gateway } else { Role::Pipeline };
        let who = cluster.nth(role, rng.random_range(0..2));
        let way = |cluster: &Cluster, mode| cluster.ways.set(Some(who), Kind::History, mode);
        let fault = match self {
            Self::FreezesWhileItWrites | Self::FreezesAndItsRowsComeLate => Fault::Freeze(who),
            Self::Dies | Self::GatewayDies => Fault::Kill(who, rng.random_range(100..2_000)),
        };
        match self {
            Self::FreezesWhileItWrites => {
                let late = Duration::from_millis(rng.random_range(10..60));
                way(cluster, Mode::Slow(late));
                // Until it is somewhere among its writes.
                tokio::time::sleep(Duration::from_millis(rng.random_range(100..600))).await;
            }
            Self::FreezesAndItsRowsComeLate => {
                way(cluster, Mode::Silent);
                tokio::time::sleep(Duration::from_millis(rng.random_range(1..80))).await;
            }
            Self::Dies | Self::GatewayDies => {}
        }
        let told = fault.befall(cluster, FROZEN_S).await.unwrap();
        way(cluster, Mode::Open);
        format!("{self:?}: {told}")
    }
}

/// R6.1, R6.2, R7.1, R9, R10, P2, P6, P8, P13, invariants 1 to 5: everything accepted stands in its conversation once and in
/// one order, for both sides and on all their devices; marks, counts, ticks and books say what was.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes under load: run by the suite `cluster`"]
async fn thirty_pairs_lose_nothing_and_count_right_while_processes_freeze_and_die() {
    let (seed, rounds) = (setting("ESH3AR_SEED", 20_261_126), setting("ESH3AR_ROUNDS", Trouble::ALL.len()));
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(|folder| {
        let mut plan = small(folder).count(Role::Pipeline, 2).count(Role::Gateway, 2);
        plan.proxied = true;
        let set = [
            "limits.door.person_per_minute=1000000",
            "limits.door.person_per_hour=1000000",
            "limits.flow.retry_first_ms=200",
            "limits.flow.ack_ms=5000",
        ];
        plan.set.extend(set.map(str::to_owned));
        plan
    })
    .await;

    let second = |phone: usize| (phone < BUSY).then_some((phone, phone + 1));
    let who = (0..PHONES).map(|phone| (phone, phone)).chain((0..PHONES).filter_map(second));
    let people = who.enumerate().map(|(n, (phone, business))| {
        let names = [format!("business:b{}", business % BUSINESSES), number(phone as u32)];
        // Some at those who take in, some at those who hold sockets: both take chat.
        names.map(|name| cluster.person(&name, if n % 2 == 0 { &cluster.front } else { &cluster.sockets }))
    });
    let talk = Talk::open(people.collect(), REST).await;
    let place = |name: &str| {
        let mut all = (0..talk.pairs.len()).flat_map(|pair| [(pair, 0), (pair, 1)]);
        all.find(|(pair, side)| talk.pairs[*pair].sides[*side].name == name).unwrap()
    };
    // Everybody has a device, business users a second one that comes and goes; and one that is away all the time, which
    // is to read it all from its inbox.
    let phones = (0..PHONES).map(|n| (number(n as u32), n % 3 == 0));
    let desks = (0..BUSINESSES).map(|n| (format!("business:b{n}"), false));
    let (mut devices, mut sleepers) = (Vec::new(), Vec::new());
    for (name, goes) in phones.chain(desks) {
        let mut device = |device: &str, goes| {
            let phone = cluster.device(&name, device);
            Device::new(&talk, phone, place(&name), device, goes, rng.random())
        };
        if name.starts_with("business") {
            devices.push(device("laptop", true));
        }
        devices.push(device("device", goes));
        sleepers.push(device("sleeper", false));
    }
    for device in devices.iter_mut().chain(&mut sleepers) {
        device.arrives().await;
    }
    sleepers.iter_mut().for_each(|sleeper| sleeper.phone.drop_line());

    let talking = futures::future::join_all(devices.iter_mut().map(|device| device.talks(&talk)));
    let trouble = async {
        let mut order = Vec::new();
        for round in 0..rounds {
            if order.is_empty() {
                order = Trouble::ALL.to_vec();
                order.shuffle(&mut rng);
            }
            let said = talk.said();
            let on = || async { (talk.said() >= said + BETWEEN).then_some(()) };
            eventually("them to talk on", on).await;
            let told = order.pop().unwrap().befall(&mut cluster, &mut rng).await;
            println!("{}: {told}; {} said", round + 1, talk.said());
        }
        let said = talk.said();
        eventually("them to talk on", async || (talk.said() >= said + BETWEEN).then_some(())).await;
        talk.stop();
    };
    tokio::join!(talking, talk.write(), trouble);

    // What everybody's devices saw is what stands.
    let began = Instant::now();
    until_all(&talk, &mut devices).await;
    let (threads, mut wrong) = talk.until_right(true).await;
    println!("everything had settled {} ms after the last word", began.elapsed().as_millis());
    until_all(&talk, &mut sleepers).await;
    wrong.extend(devices.iter().chain(&sleepers).flat_map(|device| talk.seen(device, &threads)));
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?} {}", cluster.logs());

    // The last marks, of one side each: nothing is left to read for it, and the other's messages are read.
    for (n, pair) in talk.pairs.iter().enumerate() {
        pair.mark(n % 2, threads[n].len() as u64).await;
    }
    let (_, wrong) = talk.until_right(true).await;
    assert!(wrong.is_empty(), "seed {seed}: {wrong:#?} {}", cluster.logs());

    let total = talk.said();
    let books = eventually("the books to balance", async || {
        let books = cluster.ask("/admin/v1/books").await;
        (books["balanced"] == true && books["total"]["unrecorded"] == 0).then_some(books)
    })
    .await;
    let of = |name: &str| books["total"][name].as_u64().unwrap();
    let others = ["residue", "pending", "sent", "failed"].map(of);
    assert_eq!((of("accepted"), of("delivered") + of("read"), others), (total, total, [0; 4]), "{books}");
    println!("{total} messages in {} conversations", talk.pairs.len());
}

async fn until_all(talk: &Talk, devices: &mut [Device]) {
    let reading = devices.iter_mut().map(|device| {
        let due = talk.due(device);
        device.until_all(talk, due)
    });
    futures::future::join_all(reading).await;
}
