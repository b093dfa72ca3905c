//! The command line: what can be asked, and which file does it. A new command is a variant of [`Command`], a line in `run`
//! and a file here.

mod bench;
mod books;
mod chat;
mod client;
mod completions;
mod config;
mod conversations;
mod data;
mod dead;
mod drill;
mod listen;
mod phone;
mod print;
mod send;
mod servers;
mod signals;
mod stopped;
mod tail;
mod token;
mod trace;
mod up;
mod whose;

use std::{io, process::ExitCode};

use clap::{Args, Parser, Subcommand, error::ErrorKind};

use crate::{
    compose::Role,
    exit::{Exit, Failure},
};

/// The end of `esh3ar --help`.
const AFTER: &str = "\
Exit codes: 0 done; 1 tried and failed, or what was waited for did not come; 2 the command line or the configuration is wrong;
3 a server, a port or a data folder cannot be reached or opened; 4 the server refused it.

Commands that talk to a server find it and their token by --url and --token (ESH3AR_URL, ESH3AR_TOKEN), or by the local data
folder (--data, ESH3AR_DATA): a server leaves its address there, and its signing key makes a token.

A first minute:
  esh3ar up                                              in one terminal
  esh3ar listen --user +962790000001                     in another
  esh3ar send --to +962790000001 --text Hello            in a third";

/// Messages from businesses to people's phones, none lost.
#[derive(Debug, Parser)]
#[command(name = "esh3ar", bin_name = "esh3ar", version, about, after_help = AFTER, propagate_version = true, subcommand_required = true)]
pub struct Cli {
    /// Answer in JSON, one object a line, for scripts.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What can be asked.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service: every role in one process, durable in one folder.
    #[command(after_help = up::EXAMPLE)]
    Up(up::UpArgs),
    /// Run one part of several: takes messages in, answers reads (needs servers).
    #[command(after_help = up::ROLE_EXAMPLE)]
    Ingest(up::UpArgs),
    /// Run one part of several: the dataflow (needs servers).
    #[command(after_help = up::ROLE_EXAMPLE)]
    Pipeline(up::UpArgs),
    /// Run one part of several: holds sockets, answers reads (needs servers).
    #[command(after_help = up::ROLE_EXAMPLE)]
    Gateway(up::UpArgs),
    /// Run one part of several: serves administrators alone (needs servers).
    #[command(after_help = up::ROLE_EXAMPLE)]
    Admin(up::UpArgs),
    /// Make or check the topics that a Kafka log needs.
    #[command(subcommand, after_help = servers::TOPICS_EXAMPLE)]
    Topics(servers::TopicsCommand),
    /// Apply or check the schema that a ScyllaDB history needs.
    #[command(subcommand, after_help = servers::SCHEMA_EXAMPLE)]
    Schema(servers::SchemaCommand),
    /// Make a token from the data folder's signing key and print it.
    #[command(after_help = token::EXAMPLE)]
    Token(token::TokenArgs),
    /// Send one message.
    #[command(after_help = send::EXAMPLE)]
    Send(send::SendArgs),
    /// Receive a user's messages, as their phone would: a line a message.
    #[command(after_help = listen::EXAMPLE)]
    Listen(listen::ListenArgs),
    /// Talk with somebody in the terminal, line by line, with ticks.
    #[command(after_help = chat::EXAMPLE)]
    Chat(chat::ChatArgs),
    /// List, show and export a user's conversations.
    #[command(subcommand, after_help = conversations::EXAMPLE)]
    Conversations(conversations::ConversationsCommand),
    /// Tell everything that happened to a message.
    #[command(after_help = trace::EXAMPLE)]
    Trace(trace::TraceArgs),
    /// Work the dead letters: messages that were given up.
    #[command(subcommand, after_help = dead::EXAMPLE)]
    Dead(dead::DeadCommand),
    /// Show that nothing was lost: accepted = unrecorded + pending + sent + delivered + read + failed.
    #[command(after_help = books::EXAMPLE)]
    Books(books::BooksArgs),
    /// Read a topic of the log, decoded and redacted.
    #[command(after_help = tail::EXAMPLE)]
    Tail(tail::TailArgs),
    /// Show or check the configuration.
    #[command(subcommand, after_help = config::EXAMPLE)]
    Config(config::ConfigCommand),
    /// Check or repair a stopped server's data folder.
    #[command(subcommand, after_help = data::EXAMPLE)]
    Data(data::DataCommand),
    /// Measure this machine's Esh3ar: a table of figures beside their baselines.
    #[command(after_help = bench::EXAMPLE)]
    Bench(bench::BenchArgs),
    /// Break a server of its own on purpose and account for every message.
    #[command(subcommand, after_help = drill::EXAMPLE)]
    Drill(drill::DrillCommand),
    /// Print completions for a shell.
    #[command(after_help = completions::EXAMPLE)]
    Completions(completions::CompletionsArgs),
}

/// How to find and read a configuration, for every command that needs one.
#[derive(Debug, Args, Default, Clone)]
pub struct ConfigArgs {
    /// A TOML file. `esh3ar config show` lists every key.
    #[arg(long, value_name = "FILE", env = "ESH3AR_CONFIG")]
    pub config: Option<std::path::PathBuf>,
    /// Set one key, e.g. --set limits.flow.ack_ms=300. Can be repeated; wins over everything else.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// Reads the configuration, with flags of the command as (key, value, flag).
    pub fn load(&self, flags: &[(&str, String, &str)]) -> Result<crate::config::Loaded, Failure> {
        // A variable that is not text cannot be one of ours.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let environment = std::env::vars_os().filter_map(text);
        crate::config::load(self.config.as_deref(), environment, flags, &self.set)
            .map_err(|why| Failure::usage(why.to_string()))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(help) => {
            let _ = help.print();
            let asked = matches!(help.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { Exit::Done } else { Exit::Usage }.into();
        }
    };
    let json = cli.json;
    raise_descriptors();
    match run(cli) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            print::failure(&failure, json);
            failure.exit.into()
        }
    }
}

/// Every socket and file needs a descriptor, and many systems start a process with 1,024: takes what the system lets it have.
/// `up` says so where that is less than its limits allow.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // A refusal leaves what was there before.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let json = cli.json;
    match cli.command {
        Command::Up(args) => workers()?.block_on(up::run(Role::All, args, json)),
        Command::Ingest(args) => workers()?.block_on(up::run(Role::Ingest, args, json)),
        Command::Pipeline(args) => workers()?.block_on(up::run(Role::Pipeline, args, json)),
        Command::Gateway(args) => workers()?.block_on(up::run(Role::Gateway, args, json)),
        Command::Admin(args) => workers()?.block_on(up::run(Role::Admin, args, json)),
        Command::Topics(command) => workers()?.block_on(servers::topics(command, json)),
        Command::Schema(command) => workers()?.block_on(servers::schema(command, json)),
        Command::Token(args) => token::run(&args, json),
        Command::Send(args) => one()?.block_on(send::run(args, json)),
        Command::Listen(args) => one()?.block_on(listen::run(args, json)),
        Command::Chat(args) => one()?.block_on(chat::run(args, json)),
        Command::Conversations(command) => one()?.block_on(conversations::run(command, json)),
        Command::Trace(args) => one()?.block_on(trace::run(args, json)),
        Command::Dead(command) => one()?.block_on(dead::run(command, json)),
        Command::Books(args) => workers()?.block_on(books::run(args, json)),
        Command::Tail(args) => workers()?.block_on(tail::run(args, json)),
        Command::Config(command) => config::run(&command, json),
        Command::Data(command) => data::run(&command, json),
        Command::Bench(args) => workers()?.block_on(signals::unless_told_to_end(bench::run(args, json))),
        Command::Drill(command) => workers()?.block_on(signals::unless_told_to_end(drill::run(command, json))),
        Command::Completions(args) => completions::run(&args),
    }
}

/// A runtime with a worker for each core, for what serves or opens a store.
fn workers() -> Result<Runtime, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Runtime::new(tokio::runtime::Builder::new_multi_thread().worker_threads(cores).thread_name("esh3ar"))
}

/// A runtime on this thread, for a client.
fn one() -> Result<Runtime, Failure> {
    Runtime::new(&mut tokio::runtime::Builder::new_current_thread())
}

/// A runtime that does not wait at its end for threads that are stuck in a system call.
struct Runtime(Option<tokio::runtime::Runtime>);

impl Runtime {
    fn new(builder: &mut tokio::runtime::Builder) -> Result<Self, Failure> {
        let started = builder.enable_all().build();
        let runtime =
            started.map_err(|why: io::Error| Failure::failed(format!("no threads could be started: {why}")))?;
        Ok(Self(Some(runtime)))
    }

    fn block_on<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        match &self.0 {
            Some(runtime) => runtime.block_on(work),
            None => Err(Failure::failed("the threads have ended")),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests;
