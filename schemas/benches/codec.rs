//! What reading a draft, naming a message and the codec cost, a message: CPU of one thread.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use schemas::{
    Draft, Message, Phone, Priority, Sender, Tenant, Timestamp, codec,
    draft::Admission,
    limits::MessageLimits,
    record::{LaneRecord, accepted},
};

const DRAFT: &str = r#"{"to":"+962790000001","content":"Your order is on its way and will be with you between two and four.","key":"order-1001","ref":"r-1","metadata":{"order":1001}}"#;

fn admit(known: Option<Phone>) -> Message {
    let (tenant, limits) = (Tenant::parse("acme"), MessageLimits::default());
    let phone = |text: &str| known.map_or_else(|| Phone::parse(text), Ok);
    let at = Admission {
        tenant: tenant.as_ref().unwrap_or_else(|why| unreachable!("{why}")),
        from: &Sender::Server,
        header_key: None,
        broadcast: None,
        trace: None,
        default_priority: Priority::Normal,
        now: Timestamp(1_700_000_000_000),
        limits: &limits,
        phone: &phone,
        clean: &|_| None,
    };
    let draft = Draft::<String>::parse(DRAFT.as_bytes()).unwrap_or_else(|why| unreachable!("{why}"));
    draft.admit(&at).unwrap_or_else(|why| unreachable!("{why}"))
}

fn codec_costs(c: &mut Criterion) {
    let message = admit(None);
    let body = accepted(&message, 24).body;
    let mut group = c.benchmark_group("message");
    group.throughput(Throughput::Elements(1));
    group.bench_function("read and admit, number known", |b| {
        let known = Phone::from_stored("+962790000001");
        b.iter(|| admit(known))
    });
    group.bench_function("read and admit, number checked", |b| b.iter(|| admit(None)));
    group.bench_function("encode for its lane", |b| b.iter(|| accepted(&message, 24)));
    group.bench_function("decode from its lane", |b| b.iter(|| codec::decode::<LaneRecord>(&body)));
    group.finish();
}

criterion_group!(benches, codec_costs);
criterion_main!(benches);
