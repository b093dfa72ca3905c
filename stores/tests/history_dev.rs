#![allow(missing_docs, unreachable_pub)]
mod conformance {
    pub mod history;
}
use std::sync::Arc;
use schemas::{time::ManualClock, limits::StoreLimits, port::History, Timestamp};
use stores::{Settings, Stores};
struct Embedded { dir: tempfile::TempDir, stores: Option<Stores> }
impl Embedded {
    async fn new() -> Self { let dir = tempfile::tempdir().unwrap(); let stores = Some(open(&dir)); Self { dir, stores } }
}
fn open(dir: &tempfile::TempDir) -> Stores {
    let settings = Settings { data: dir.path().into(), limits: StoreLimits::default(), presence_ms: 1000 };
    Stores::open(settings, Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)))).unwrap()
}
#[async_trait::async_trait]
impl conformance::history::Installation for Embedded {
    fn history(&self) -> Arc<dyn History> { self.stores.as_ref().unwrap().history.clone() }
    async fn crash(&mut self) {
        let left = tempfile::tempdir().unwrap();
        copy(self.dir.path(), left.path());
        self.stores = None;
        self.dir = left;
        self.stores = Some(open(&self.dir));
    }
    async fn restart(&mut self) { self.stores.take().unwrap().close().await; self.stores = Some(open(&self.dir)); }
}
history_conformance!(embedded: Embedded::new());

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name()))).unwrap();
        if path.is_dir() { copy(&path, &to) } else { std::fs::copy(&path, &to).map(drop).unwrap() }
    }
}

use conformance::history::kit;
use schemas::{What, Fact, Position, port::Schedule};
fn du(p:&std::path::Path)->u64{ let mut n=0; for e in std::fs::read_dir(p).unwrap(){ let e=e.unwrap(); let m=e.metadata().unwrap(); n+= if m.is_dir(){du(&e.path())}else{ use std::os::unix::fs::MetadataExt; m.blocks()*512 } } n }
fn wchar()->u64{ let s=std::fs::read_to_string("/proc/self/io").unwrap(); s.lines().find(|l|l.starts_with("write_bytes")).unwrap().split(' ').nth(1).unwrap().parse().unwrap() }
fn cpu()->f64{ let s=std::fs::read_to_string("/proc/self/stat").unwrap(); let f:Vec<&str>=s.rsplit(')').next().unwrap().split_whitespace().collect(); (f[11].parse::<f64>().unwrap()+f[12].parse::<f64>().unwrap())/100.0 }
#[allow(clippy::disallowed_methods)]
#[tokio::test(flavor="multi_thread", worker_threads=2)]
#[ignore]
async fn bench() {
    use std::time::Instant;
    let bed = Embedded::new().await;
    let stores = bed.stores.as_ref().unwrap();
    let h = stores.history.clone();
    let t = kit::tenant();
    let users = 1000u32; let per: u64 = std::env::var("PER").ok().and_then(|v|v.parse().ok()).unwrap_or(200);
    let inboxes: Vec<_> = (0..users).map(|u| kit::inbox(&t,u)).collect();
    let filler: String = (0..300).map(|i| char::from(33 + ((i*7919+13)%90) as u8)).collect();
    let mut all = Vec::new();
    for n in 1..=per { for inbox in &inboxes {
        let mut m = kit::message(inbox);
        m.content.body = format!("{}{}", m.id, &filler[36..]);
        all.push(kit::entry(inbox, kit::at(n), kit::at(n-1), n, m));
    } }
    let (s0,w0,c0,i0)=(stores.stats(), wchar(), cpu(), Instant::now());
    let none = Schedule::default();
    for group in all.chunks(800) {
        futures::future::join_all(group.chunks(100).map(|c| h.record(c, &none))).await.into_iter().for_each(|r| r.unwrap());
    }
    let s1=stores.stats(); let n=all.len() as f64;
    println!("record: {:.0}/s, cpu {:.1} us, rows {:.2}, bytes {:.0}, disk written {:.0}", n/i0.elapsed().as_secs_f64(), (cpu()-c0)*1e6/n, (s1.writes-s0.writes) as f64/n, (s1.bytes-s0.bytes) as f64/n, (wchar()-w0) as f64/n);
    for (name, whats) in [("sent+delivered", &[What::Sent, What::Delivered][..]), ("read", &[What::Read][..])] {
        let (s0,w0,c0,i0)=(stores.stats(), wchar(), cpu(), Instant::now());
        for group in all.chunks(400) {
            futures::future::join_all(group.chunks(100).map(|c| { let facts: Vec<Fact> = c.iter().flat_map(|e| whats.iter().map(|w| Fact{device: Some("phone".parse().unwrap()), ..kit::fact(e,*w,5)})).collect(); let h=h.clone(); async move { h.settle(&facts).await.map(drop) } })).await.into_iter().for_each(|r| r.unwrap());
        }
        let s1=stores.stats();
        println!("{name}: {:.0}/s, cpu {:.1} us, rows {:.2}, bytes {:.0}, disk written {:.0}", n/i0.elapsed().as_secs_f64(), (cpu()-c0)*1e6/n, (s1.writes-s0.writes) as f64/n, (s1.bytes-s0.bytes) as f64/n, (wchar()-w0) as f64/n);
    }
    println!("disk {:.0} bytes a message", du(bed.dir.path()) as f64/n);
    for limit in [100usize, 1000] { for from in [0, per.saturating_sub(limit as u64)] {
        let mut times: Vec<_> = Vec::new();
        for inbox in inboxes.iter().take(50) { let i=Instant::now(); let s=h.read(inbox, kit::at(from), limit).await.unwrap(); times.push((i.elapsed().as_secs_f64()*1e3, s.entries.len())); }
        times.sort_by(|a,b| a.0.total_cmp(&b.0));
        println!("read {limit} from {from}: {} entries, p50 {:.2} ms, max {:.2} ms", times[25].1, times[25].0, times[49].0);
    } }
    let i=Instant::now(); for inbox in &inboxes { h.unread(inbox).await.unwrap(); } println!("unread {:.1} us", i.elapsed().as_secs_f64()*1e6/f64::from(users));
    let i=Instant::now(); h.tails(&inboxes).await.unwrap(); println!("tail {:.1} us", i.elapsed().as_secs_f64()*1e6/f64::from(users));
    let ids: Vec<_> = all.iter().step_by(all.len()/1000).map(|e| e.message.id).collect();
    let i=Instant::now(); h.messages(&ids).await.unwrap(); println!("message by id {:.1} us", i.elapsed().as_secs_f64()*1e6/ids.len() as f64);
    let i=Instant::now(); h.known(&ids).await.unwrap(); println!("known {:.1} us", i.elapsed().as_secs_f64()*1e6/ids.len() as f64);
    let i=Instant::now(); h.retain(schemas::Partition(3), Timestamp(0), 1000).await.unwrap(); println!("idle retain {:.1} ms for 1000 inboxes", i.elapsed().as_secs_f64()*1e3);
    let _ = Position::START;
}
