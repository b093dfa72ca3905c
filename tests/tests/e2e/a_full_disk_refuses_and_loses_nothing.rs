//! Rule 12: a full disk is a refusal at the door (507), and a restart after freeing space loses nothing that was accepted.

use serde_json::json;
use tests::harness::{Business, Phone, Server, Settings, number};

/// A small file system of its own, taken away again.
struct Tmpfs(std::path::PathBuf);

impl Tmpfs {
    fn mount(path: &std::path::Path, size: &str) -> Option<Self> {
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .status();
        mounted.is_ok_and(|s| s.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_answers_507_and_what_was_accepted_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // Without the right to mount, the bound on free space does the same: it is set just below what is free.
    let tmpfs = Tmpfs::mount(&disk, "512m");
    let free = rustix::fs::statvfs(&disk).map(|s| s.f_bavail * s.f_frsize).unwrap();
    let bound = if tmpfs.is_some() { free - (40 << 20) } else { free - (60 << 20) };
    let settings = Settings::unmetered().with([format!("limits.store.free_bytes={bound}")]);
    let server = Server::start(&disk.join("data"), settings);
    let business = Business::new(&server);
    let mut accepted = Vec::new();
    let mut refused = None;
    for round in 0..100 {
        let items: Vec<_> = (0..500)
            .map(|n| json!({ "to": number(1), "content": format!("{round}.{n} {}", noise(round * 500 + n, 2_000)) }))
            .collect();
        for (item, answer) in items.iter().zip(business.batch(&items).await) {
            match answer["status"].as_u64() {
                Some(202) => accepted.push(item["content"].as_str().unwrap().to_owned()),
                _ => refused = Some(answer),
            }
        }
        if refused.is_some() {
            break;
        }
    }
    let refused = refused.expect("the disk never became full");
    assert_eq!(
        (refused["status"].as_u64(), refused["problem"]["type"].as_str()),
        (Some(507), Some("/problems/disk-full")),
        "{refused}"
    );
    let (status, problem) = business.post("/v1/messages", &json!({ "to": number(1), "content": "x" })).await;
    assert_eq!(status, 507, "{problem}");

    // Space is freed: the bound is lowered, and everything accepted is there.
    let data = server.data.clone();
    drop(server);
    let server = Server::start(&data, Settings::unmetered().with(["limits.store.free_bytes=1000000"]));
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(accepted.len()).await;
    assert_eq!(phone.contents(), accepted);
    drop(server);
    drop(tmpfs);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fails_ends_the_process_and_a_restart_finds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    let Some(tmpfs) = Tmpfs::mount(&disk, "160m") else {
        tests::harness::not_run("a disk of its own that runs full: this machine lets no test mount one");
        return;
    };
    // No bound on free space: writes go on until the file system itself refuses.
    let settings = Settings::unmetered().with(["limits.store.free_bytes=0"]);
    let mut server = Server::start(&disk.join("data"), settings.clone());
    let accepted = fill(&mut server).await;
    let grown = std::process::Command::new("mount").args(["-o", "remount,size=900m"]).arg(&disk).status().unwrap();
    assert!(grown.success());
    let server = server.restart_with(settings);
    found(&server, &accepted).await;
    drop(server);
    drop(tmpfs);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_may_not_grow_end_the_process_and_a_restart_finds_everything() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings::unmetered();
    // The journal is made with 64 MiB: it is what grows past this.
    let mut server = Server::start(&folder.path().join("data"), settings.clone().files_of_at_most(65 << 20));
    let accepted = fill(&mut server).await;
    let server = server.restart_with(settings);
    found(&server, &accepted).await;
}

/// Sends until the server ends by itself, with the code that says so; what it had accepted.
async fn fill(server: &mut Server) -> Vec<String> {
    let business = Business::new(server);
    let mut accepted = Vec::new();
    'full: for round in 0..2_000usize {
        let one = |n: usize| {
            let content = format!("{round}.{n} {}", noise(round * 100 + n, 8_000));
            json!({ "to": number(1), "content": content, "key": format!("{round}.{n}") })
        };
        let items: Vec<_> = (0..100).map(one).collect();
        let lines: String = items.iter().map(|item| format!("{item}\n")).collect();
        let request = server.http.post(format!("{}/v1/messages/batch", server.url)).bearer_auth(business.token());
        let Ok(response) = request.header("content-type", "application/x-ndjson").body(lines).send().await else {
            break;
        };
        let Ok(text) = response.text().await else { break };
        for (item, line) in items.iter().zip(text.lines()) {
            let Ok(answer) = serde_json::from_str::<serde_json::Value>(line) else { break 'full };
            if answer["status"] != 202 {
                break 'full;
            }
            accepted.push(item["content"].as_str().unwrap().to_owned());
        }
    }
    assert!(!accepted.is_empty());
    assert_eq!(server.until_ended().await, Some(1), "it ends by itself, with a code that says so: {}", server.log());
    accepted
}

/// Everything that was accepted arrives, in order, each once.
async fn found(server: &Server, accepted: &[String]) {
    let mut phone = Phone::new(server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(accepted.len()).await;
    assert_eq!(phone.contents()[..accepted.len()], *accepted);
}

/// Text that no compressor makes smaller by much.
fn noise(seed: usize, chars: usize) -> String {
    let mut state = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..chars).map(next).collect()
}
