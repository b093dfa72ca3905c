//! What stands in a data folder beside the store: the signing key, made on first start, and the addresses of the server that
//! runs on it, by which clients of the same folder find it.

use std::{
    fs::{File, OpenOptions},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::TryRngCore;
use serde::{Deserialize, Serialize};

use crate::{compose::Role, exit::Failure};

/// Where a running process listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// HOST:PORT of the public listener; empty where its role has none.
    pub listen: String,
    /// HOST:PORT of the administrators' listener.
    pub admin: String,
    /// The process.
    pub pid: u32,
}

/// The signing key's file.
pub fn key_path(data: &Path) -> PathBuf {
    data.join("signing.key")
}

/// Several processes may share a folder that keeps nothing but the key: one word for each role.
fn endpoint_path(data: &Path, role: Role) -> PathBuf {
    match role {
        Role::All => data.join("endpoint.json"),
        role => data.join(format!("endpoint.{}.json", role.word())),
    }
}

/// Makes the data folder where there is none, and checks that it can be written to.
pub fn prepare(data: &Path) -> Result<(), Failure> {
    let cannot = |why: &std::io::Error| {
        let hint = match why.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "this user may not write there: choose another with --data, or change its permissions"
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full: free some space",
            ErrorKind::NotADirectory | ErrorKind::AlreadyExists => "it is not a folder: choose another with --data",
            _ => "choose another with --data",
        };
        Failure::unreachable(format!("the data folder {} cannot be used ({why}); {hint}", data.display()))
    };
    std::fs::create_dir_all(data).map_err(|why| cannot(&why))?;
    let probe = data.join(".writable");
    File::create(&probe).map_err(|why| cannot(&why))?;
    std::fs::remove_file(&probe).map_err(|why| cannot(&why))
}

/// Reads the signing key; `None` where there is none yet.
pub fn read_key(data: &Path) -> Result<Option<Vec<u8>>, Failure> {
    let path = key_path(data);
    match std::fs::read(&path) {
        Ok(key) if key.len() >= 32 => Ok(Some(key)),
        Ok(_) => Err(Failure::unreachable(format!(
            "{} is too short to be a signing key: bring back the right one, or remove it and every token with it",
            path.display()
        ))),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(None),
        Err(why) => Err(Failure::unreachable(format!("the signing key {} cannot be read: {why}", path.display()))),
    }
}

/// Reads the signing key, or makes one that its owner alone can read. The bytes of the file are the HS256 secret.
pub fn key(data: &Path) -> Result<Vec<u8>, Failure> {
    if let Some(key) = read_key(data)? {
        return Ok(key);
    }
    let path = key_path(data);
    let cannot = |why: &dyn std::fmt::Display| {
        Failure::unreachable(format!("the signing key {} cannot be made: {why}", path.display()))
    };
    let mut random = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut random).map_err(|why| cannot(&why))?;
    let key = URL_SAFE_NO_PAD.encode(random).into_bytes();
    // Under another name first: a crash in between leaves no half of a key.
    let fresh = data.join(format!("signing.key.{}", std::process::id()));
    let _ = std::fs::remove_file(&fresh);
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(|why| cannot(&why))?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(|why| cannot(&why))?;
    // A link and not a renaming: where two processes begin at once, the first one's key is both's.
    let linked = std::fs::hard_link(&fresh, &path);
    let _ = std::fs::remove_file(&fresh);
    match linked {
        Ok(()) => {}
        Err(why) if why.kind() == ErrorKind::AlreadyExists => {
            return read_key(data)?.ok_or_else(|| cannot(&"another process took it away"));
        }
        Err(why) => return Err(cannot(&why)),
    }
    File::open(data).and_then(|folder| folder.sync_all()).map_err(|why| cannot(&why))?;
    Ok(key)
}

/// Leaves word where the process listens, where it has a folder. Not being able to costs convenience only.
pub fn write_endpoint(data: &Path, role: Role, endpoint: &Endpoint) {
    if !data.is_dir() {
        return;
    }
    let write = || {
        let fresh = data.join(format!("endpoint.{}.new", std::process::id()));
        std::fs::write(&fresh, serde_json::to_vec(endpoint)?)?;
        std::fs::rename(&fresh, endpoint_path(data, role))
    };
    if let Err(why) = write() {
        tracing::warn!(%why, "the word where this process listens could not be written; clients need --url");
    }
}

/// Where the process of a folder listens, as it said when it started: that of the first of these roles which left word. A
/// word whose process has ended without taking it back counts only where there is no other.
pub fn read_endpoint(data: &Path, roles: &[Role]) -> Option<Endpoint> {
    let read = |role: &Role| serde_json::from_slice(&std::fs::read(endpoint_path(data, *role)).ok()?).ok();
    let words: Vec<Endpoint> = roles.iter().filter_map(read).collect();
    words.iter().find(|word| lives(word.pid)).or_else(|| words.first()).cloned()
}

fn lives(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    // Another user's process lives too, and may not be asked.
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

/// Takes the word back, where it is still this process's.
pub fn remove_endpoint(data: &Path, role: Role) {
    if read_endpoint(data, &[role]).is_some_and(|word| word.pid == std::process::id()) {
        let _ = std::fs::remove_file(endpoint_path(data, role));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    struct Folder(PathBuf);
    impl Folder {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("esh3ar-folder-{}", uuid::Uuid::new_v4())))
        }
    }
    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_signing_key_is_made_once_and_is_its_owner_s_alone() {
        let folder = Folder::new();
        prepare(&folder.0).unwrap();
        assert_eq!(read_key(&folder.0).unwrap(), None);
        let made = key(&folder.0).unwrap();
        assert_eq!((made.len(), key(&folder.0).unwrap()), (43, made.clone()));
        assert_eq!(std::fs::read(key_path(&folder.0)).unwrap(), made, "the file's bytes are the secret");
        let mode = std::fs::metadata(key_path(&folder.0)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(key_path(&folder.0), b"short").unwrap();
        assert!(key(&folder.0).unwrap_err().sentence.contains("too short"));
    }

    #[test]
    fn an_endpoint_reads_back_and_goes() {
        let folder = Folder::new();
        prepare(&folder.0).unwrap();
        let both = [Role::All, Role::Gateway];
        assert_eq!(read_endpoint(&folder.0, &both), None);
        let endpoint = |pid| Endpoint { listen: "127.0.0.1:1".into(), admin: "127.0.0.1:2".into(), pid };
        let own = endpoint(std::process::id());
        // Left behind by a process that was killed: no process has this number.
        write_endpoint(&folder.0, Role::All, &endpoint(i32::MAX as u32));
        write_endpoint(&folder.0, Role::Gateway, &own);
        assert_eq!(read_endpoint(&folder.0, &both), Some(own));
        for role in both {
            remove_endpoint(&folder.0, role);
        }
        assert_eq!(read_endpoint(&folder.0, &both), Some(endpoint(i32::MAX as u32)), "not this process's to remove");
        assert_eq!(read_endpoint(&folder.0, &[Role::Gateway]), None);
    }

    #[test]
    fn a_file_in_the_folder_s_place_is_refused_in_a_sentence() {
        let folder = Folder::new();
        std::fs::write(&folder.0, b"x").unwrap();
        let said = prepare(&folder.0).unwrap_err();
        assert_eq!(said.exit, crate::exit::Exit::Unreachable);
        assert!(said.sentence.contains("--data"), "{said}");
        std::fs::remove_file(&folder.0).unwrap();
    }
}
