//! A data folder that is read-only is refused with exit code 3 and a sentence that names it, and nothing in it changes.

use std::{
    collections::BTreeMap,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use tests::harness::{Business, Phone, Server, Settings, number};

/// The user without rights, whom root becomes here: for root nothing is read-only.
const NOBODY: u32 = 65_534;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// As somebody to whom the permissions mean something.
fn as_a_user() -> Settings {
    let mut settings = Settings::default();
    if is_root() {
        let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        settings.under = user.map(str::to_owned).to_vec();
    }
    settings
}

fn walk(folder: &Path, see: &mut dyn FnMut(&Path)) {
    see(folder);
    if folder.is_dir() {
        for entry in std::fs::read_dir(folder).unwrap() {
            walk(&entry.unwrap().path(), see);
        }
    }
}

/// Takes everybody's right to write, or gives the owner's back.
fn read_only(folder: &Path, yes: bool) {
    walk(folder, &mut |path| {
        if is_root() {
            chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let mode = match (path.is_dir(), yes) {
            (true, true) => 0o555,
            (true, false) => 0o755,
            (false, true) => 0o444,
            (false, false) => 0o600,
        };
        set_mode(path, mode);
    });
}

fn sizes(folder: &Path) -> BTreeMap<PathBuf, u64> {
    let mut all = BTreeMap::new();
    walk(folder, &mut |path| {
        all.insert(path.to_owned(), path.metadata().unwrap().len());
    });
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_folder_is_named_and_stays_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o755);
    let data = folder.path().join("data");
    let mut server = Server::start(&data, Settings::default());
    let sent = Business::new(&server).send(&number(1), "still here").await;
    Business::new(&server).until(&sent.id, "pending").await;
    assert_eq!(server.terminate(), Some(0));
    drop(server);

    read_only(&data, true);
    let before = sizes(&data);
    let refused = Server::try_start(&data, as_a_user()).err().expect("refused");
    assert_eq!(refused.code, Some(3), "{refused}");
    assert!(refused.said.contains(data.to_str().unwrap()), "it names the folder: {refused}");
    assert!(refused.said.to_lowercase().contains("permission denied"), "and says why: {refused}");
    assert!(!refused.said.contains("panicked"), "{refused}");
    assert_eq!(sizes(&data), before);

    read_only(&data, false);
    let server = Server::start(&data, as_a_user());
    let mut phone = Phone::new(&server, &number(1), "one");
    phone.connect().await.unwrap();
    phone.until_seen(1).await;
    assert_eq!(phone.contents(), ["still here"]);
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    set_mode(folder.path(), 0o755);
    let parent = folder.path().join("parent");
    std::fs::create_dir(&parent).unwrap();
    // The log of the child is the test's own file, made before the right is gone.
    std::fs::write(parent.join("data.log"), "").unwrap();
    set_mode(&parent, 0o555);
    let refused = Server::try_start(&parent.join("data"), as_a_user()).err().expect("refused");
    assert_eq!(refused.code, Some(3), "{refused}");
    assert!(refused.said.contains("parent/data"), "{refused}");
    set_mode(&parent, 0o755);
}
