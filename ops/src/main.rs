//! The binary `esh3ar`. Everything it does is in the library `ops`.

/// Small and quick for many short-lived pieces on many threads, which is what messages are.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    ops::cli::main()
}
