//! How keyspaces are tuned, by what is done with them. The bounds here, times the number of keyspaces, are the memory that
//! writes may take; the block cache is bounded apart (`cache_bytes`).

use std::sync::Arc;

use fjall::{
    CompressionType, KeyspaceCreateOptions, KvSeparationOptions,
    compaction::Leveled,
    config::{BlockSizePolicy, CompressionPolicy, FilterPolicy},
};

const MIB: u64 = 1024 * 1024;

/// What a keyspace is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Rows that are looked up by key, written over and removed.
    Rows,
    /// The same with values that are long and never change: they are written once more after the journal, to files of their
    /// own, and merging moves only keys.
    Bodies,
    /// Values that are only ever added, read in key order and dropped together.
    Appended,
}

impl Shape {
    /// The engine's options.
    pub(crate) fn options(self) -> KeyspaceCreateOptions {
        // Everything is synced by the writer thread, once per group.
        let base = KeyspaceCreateOptions::default().manual_journal_persist(true);
        match self {
            // 8 MiB of unflushed rows: a dozen such keyspaces stay near 100 MB even while they flush.
            Self::Rows => base
                .max_memtable_size(8 * MIB)
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(16 * MIB))),
            // Merging rewrites a row once a level and more often inside it; with the values apart that is a tenth of a row. Rows
            // are removed in the order of their age, so a file of values goes whole soon after its first value: it is hardly
            // ever written anew for what is left in it. 96 bytes: what is shorter stays with its key, as it takes no more
            // there than what would name its place.
            Self::Bodies => base
                .max_memtable_size(16 * MIB)
                .with_kv_separation(Some(
                    KvSeparationOptions::default()
                        .separation_threshold(96)
                        .compression(CompressionType::None)
                        .file_target_size(32 * MIB)
                        .staleness_threshold(0.75),
                ))
                .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(16 * MIB))),
            // Never looked up by exact key, so no filters; read in order, so larger blocks, which also compress better. A
            // keyspace of this shape is dropped whole when it is old: merging its tables early only costs writes.
            Self::Appended => base
                .max_memtable_size(16 * MIB)
                .filter_policy(FilterPolicy::disabled())
                .data_block_size_policy(BlockSizePolicy::all(16 * 1024))
                .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
                .compaction_strategy(Arc::new(Leveled::default().with_l0_threshold(12))),
        }
    }
}
