//! Reads the engine's journal before the engine does, because the engine takes every break for the torn end of the last
//! write and cuts off all that follows, while a break in the middle is damage and what follows was promised to be kept.
//!
//! Every group is synced before the next is written, so a crash can tear the last group only, and a torn group has no end.
//! An end after a break is therefore damage, with one exception: a power cut may lose pages of the last group and keep its
//! end. The journal is laid out with zeros, so a lost page is a page of zeros.
//!
//! The layout is fjall 3's: batches of `1 count:u32 seqno:u64`, items of `2 kind:u8 compression:u8 keyspace:u64 key:u16
//! value:u32 stored:u32` with key and stored value, or `4 keyspace:u64`, and an end of `3 xxh3:u64 "FJL\x03"`.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3;

use crate::OpenError;

const PAGE: usize = 4096;
const TRAILER: [u8; 4] = *b"FJL\x03";
const END_BYTES: usize = 13;
/// Keys and values beyond these are not written by the engine: a larger length is a damaged one.
const LONGEST_VALUE: u32 = 1 << 30;

/// How a journal file ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// After a whole batch.
    Whole,
    /// In the middle of the last batch, of which so many bytes are there: it was never answered.
    Torn(u64),
    /// It does not end: what stands after this place cannot be read, and it was complete once.
    Damaged,
}

/// What was found in one journal file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) path: PathBuf,
    /// Whole batches.
    pub(crate) batches: u64,
    /// Where the last of them ends.
    pub(crate) valid: u64,
    pub(crate) end: End,
}

/// The journal files of a store, oldest first.
pub(crate) fn files(store: &Path) -> Result<Vec<PathBuf>, OpenError> {
    let entries = match fs::read_dir(store) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(OpenError::io("reading", store)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(OpenError::io("reading", store))?.path();
        let number = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|n| n.parse::<u64>().ok()) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// Cuts off a torn end, and refuses damage.
pub(crate) fn make_good(store: &Path) -> Result<(), OpenError> {
    for path in files(store)? {
        let scan = scan(&path)?;
        match scan.end {
            End::Whole => {}
            End::Torn(bytes) => {
                tracing::warn!(file = %path.display(), bytes, "the last write was torn by a crash and never answered: cut off");
                cut(&path, scan.valid)?;
            }
            End::Damaged => {
                let why = format!("its journal cannot be read from byte {} on, and it goes on after that", scan.valid);
                return Err(OpenError::Damaged { path, why });
            }
        }
    }
    Ok(())
}

/// Makes a journal file end here.
pub(crate) fn cut(path: &Path, at: u64) -> Result<(), OpenError> {
    let cut = || -> std::io::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(at)?;
        file.sync_all()
    };
    cut().map_err(OpenError::io("shortening", path))
}

/// Reads a journal file through.
pub(crate) fn scan(path: &Path) -> Result<Scan, OpenError> {
    let read = || -> std::io::Result<Scan> {
        let file = File::open(path)?;
        let mut reader = Reader { file: BufReader::with_capacity(256 * 1024, file), at: 0, item: Vec::new() };
        let (mut valid, mut batches) = (0, 0);
        // A batch that cannot be read ends the walk, whatever the reason: `rest` finds out which.
        while let Ok(true) = reader.batch() {
            valid = reader.at;
            batches += 1;
        }
        let end = rest(reader.file.into_inner(), valid)?;
        Ok(Scan { path: path.into(), batches, valid, end })
    };
    read().map_err(OpenError::io("reading", path))
}

struct Reader {
    file: BufReader<File>,
    at: u64,
    item: Vec<u8>,
}

impl Reader {
    /// Whether a whole batch stands here, going past it.
    fn batch(&mut self) -> std::io::Result<bool> {
        let [tag] = self.take()?;
        if tag != 1 {
            return Ok(false);
        }
        let count = u32::from_le_bytes(self.take()?);
        let _seqno: [u8; 8] = self.take()?;
        let mut sum = Xxh3::new();
        for _ in 0..count {
            if !self.item(&mut sum)? {
                return Ok(false);
            }
        }
        let [tag] = self.take()?;
        let written = u64::from_le_bytes(self.take()?);
        let trailer: [u8; 4] = self.take()?;
        Ok(tag == 3 && trailer == TRAILER && written == sum.digest())
    }

    fn item(&mut self, sum: &mut Xxh3) -> std::io::Result<bool> {
        let [tag] = self.take()?;
        match tag {
            2 => {
                let head: [u8; 20] = self.take()?;
                let key = u16::from_le_bytes([head[10], head[11]]);
                let stored = u32::from_le_bytes([head[16], head[17], head[18], head[19]]);
                if stored > LONGEST_VALUE {
                    return Ok(false);
                }
                let mut left = usize::from(key) + stored as usize;
                sum.update(&[tag]);
                sum.update(&head);
                while left > 0 {
                    self.item.resize(left.min(64 * 1024), 0);
                    self.file.read_exact(&mut self.item)?;
                    sum.update(&self.item);
                    left -= self.item.len();
                    self.at += self.item.len() as u64;
                }
                Ok(true)
            }
            4 => {
                let keyspace: [u8; 8] = self.take()?;
                sum.update(&[tag]);
                sum.update(&keyspace);
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }
}

/// What stands after the last whole batch.
fn rest(mut file: File, valid: u64) -> std::io::Result<End> {
    file.seek(SeekFrom::Start(valid))?;
    let mut walk = Walk::default();
    let mut file = BufReader::with_capacity(256 * 1024, file);
    let mut page = Vec::with_capacity(PAGE);
    let mut at = valid;
    loop {
        // Pages of the file, the first one cut where the walk begins.
        let room = PAGE as u64 - at % PAGE as u64;
        page.clear();
        file.by_ref().take(room).read_to_end(&mut page)?;
        if page.is_empty() {
            return Ok(walk.end(valid));
        }
        walk.page(&page, at);
        at += page.len() as u64;
    }
}

/// The pages after a break.
#[derive(Default)]
struct Walk {
    // The last bytes of the page before, where an end may begin.
    carried: Vec<u8>,
    ends: u64,
    last: Option<u64>,
    zeros: Option<u64>,
    hole: bool,
}

impl Walk {
    fn page(&mut self, page: &[u8], at: u64) {
        if page.iter().all(|byte| *byte == 0) {
            self.zeros.get_or_insert(at);
            self.carried.clear();
            return;
        }
        // A whole page of zeros with something after it.
        self.hole |= self.zeros.take().is_some();
        let last = page.iter().rposition(|byte| *byte != 0).unwrap_or_default();
        self.last = Some(at + last as u64);
        let mut bytes = std::mem::take(&mut self.carried);
        bytes.extend_from_slice(page);
        for window in bytes.windows(END_BYTES) {
            if window[0] == 3 && window.ends_with(&TRAILER) {
                self.ends += 1;
            }
        }
        let keep = bytes.len().saturating_sub(END_BYTES - 1);
        self.carried = bytes.split_off(keep);
    }

    fn end(&self, valid: u64) -> End {
        match (self.last, self.ends) {
            (None, _) => End::Whole,
            (Some(last), 0) => End::Torn(last + 1 - valid),
            (Some(last), 1) if self.hole => End::Torn(last + 1 - valid),
            _ => End::Damaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(items: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut out = vec![1];
        out.extend((items.len() as u32).to_le_bytes());
        out.extend(7u64.to_le_bytes());
        let mut sum = Xxh3::new();
        for (key, value) in items {
            let mut item = vec![2, 0, 0];
            item.extend(9u64.to_le_bytes());
            item.extend((key.len() as u16).to_le_bytes());
            item.extend((value.len() as u32).to_le_bytes());
            item.extend((value.len() as u32).to_le_bytes());
            item.extend(*key);
            item.extend(*value);
            sum.update(&item);
            out.extend(item);
        }
        out.push(3);
        out.extend(sum.digest().to_le_bytes());
        out.extend(TRAILER);
        out
    }

    fn judged(bytes: &[u8]) -> Scan {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.jnl");
        fs::write(&path, bytes).unwrap();
        scan(&path).unwrap()
    }

    #[test]
    fn a_whole_journal_with_room_left_is_whole() {
        let mut bytes = batch(&[(b"a", b"1"), (b"b", b"2")]);
        bytes.extend(batch(&[(b"c", &[5; 200_000])]));
        let valid = bytes.len() as u64;
        bytes.extend([0; 50_000]);
        let scan = judged(&bytes);
        assert_eq!((scan.batches, scan.valid, scan.end), (2, valid, End::Whole));
    }

    #[test]
    fn a_page_lost_in_a_power_cut_is_a_torn_end() {
        let first = batch(&[(b"a", b"1")]);
        let mut bytes = first.clone();
        bytes.extend(batch(&[(b"c", &[5; 20_000])]));
        bytes[8192..12288].fill(0);
        let scan = judged(&bytes);
        assert_eq!(scan.valid, first.len() as u64);
        assert!(matches!(scan.end, End::Torn(_)), "{scan:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        // Cut anywhere: only the batch that was cut is lost, and it is known to be torn.
        #[test]
        fn a_cut_loses_the_last_batch_only(values in prop::collection::vec(1usize..3000, 1..6), cut in 0.0f64..1.0) {
            let batches: Vec<_> = values.iter().map(|len| batch(&[(b"key", &vec![7; *len])])).collect();
            let bytes = batches.concat();
            let cut = (bytes.len() as f64 * cut) as usize;
            let mut torn = bytes[..cut].to_vec();
            torn.extend([0; 9000]);
            let scan = judged(&torn);
            let mut whole = 0;
            let mut valid = 0;
            for batch in &batches {
                if valid + batch.len() > cut { break; }
                valid += batch.len();
                whole += 1;
            }
            prop_assert_eq!(scan.batches, whole);
            prop_assert_eq!(scan.valid, valid as u64);
            prop_assert!(scan.end != End::Damaged);
        }

        // A flipped bit anywhere before the last batch's end marker is damage, never a torn end.
        #[test]
        fn a_flipped_bit_is_damage(values in prop::collection::vec(1usize..3000, 2..6), at in 0.0f64..1.0, bit in 0u8..8) {
            let batches: Vec<_> = values.iter().map(|len| batch(&[(b"key", &vec![7; *len])])).collect();
            let mut bytes = batches.concat();
            let last_end = bytes.len() - END_BYTES;
            let at = (last_end as f64 * at) as usize;
            bytes[at] ^= 1 << bit;
            // A batch's number is not part of its checksum: nothing but its order depends on it.
            let mut start = 0;
            let seqno = batches.iter().any(|b| { let here = (start + 5..start + 13).contains(&at); start += b.len(); here });
            let scan = judged(&bytes);
            prop_assert!(scan.end == End::Damaged || seqno, "{:?}", scan);
        }
    }
}
