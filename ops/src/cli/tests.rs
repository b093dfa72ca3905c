//! The command line: its stable forms parse, its help shows an example and its exit codes for every command.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

#[test]
fn the_stable_forms_parse() {
    for line in [
        "esh3ar up",
        "esh3ar up --data ./d --listen 127.0.0.1:0 --admin 127.0.0.1:0 --config f.toml --json --set a=b --set c=d",
        "esh3ar token --tenant acme --server",
        "esh3ar token --tenant acme --business sara --can send,chat,broadcast --ttl 24h --data d",
        "esh3ar token --tenant acme --user +962790000001",
        "esh3ar token --tenant acme --admin",
        "esh3ar send --to +962790000001 --text T --subject S --priority high --key K --wait delivered --json",
        "esh3ar send --to +962790000001 --body {} --url http://x --token t",
        "esh3ar listen --user +962790000001 --device D --no-ack --json",
        "esh3ar listen --business sara --count 3",
        "esh3ar chat --as business:acme:sara --with +962790000001",
        "esh3ar chat --as +962790000001 --with business:sara --json --no-read --wait read --timeout 5s",
        "esh3ar chat --as +962790000001 --with business:sara --follow",
        "esh3ar conversations list --as business:acme:sara --status archived --limit 9 --json",
        "esh3ar conversations show 0192f0c1-2b3c-5def-8123-456789abcdef --as business:acme:sara --messages 5",
        "esh3ar conversations export --as business:acme:sara --output f.ndjson",
        "esh3ar conversations export 0192f0c1-2b3c-5def-8123-456789abcdef --as +962790000001",
        "esh3ar trace 0192f0c1-2b3c-7def-8123-456789abcdef --json",
        "esh3ar dead list --tenant acme --reason no_ack --limit 9",
        "esh3ar dead show 0192f0c1-2b3c-7def-8123-456789abcdef",
        "esh3ar dead requeue 0192f0c1-2b3c-7def-8123-456789abcdef --dry-run",
        "esh3ar dead requeue --all --reason no_ack --dry-run",
        "esh3ar books --data d --json",
        "esh3ar tail outcomes --follow",
        "esh3ar tail esh3ar.messages.high --from 7 --partition 3 --count 1",
        "esh3ar config show --json",
        "esh3ar config check f.toml",
        "esh3ar data check --data d",
        "esh3ar data repair",
        "esh3ar completions bash",
        "esh3ar pipeline --admin 127.0.0.1:0 --set stores.log=kafka://a:1",
        "esh3ar ingest --listen 127.0.0.1:0 --data d",
        "esh3ar topics create --ingress acme --ingress zain --config f.toml",
        "esh3ar topics check --json",
        "esh3ar schema apply --set stores.history=scylla://a:1/esh3ar",
        "esh3ar schema check",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).unwrap_err());
    }
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    for line in [
        "esh3ar",
        "esh3ar token --tenant acme",
        "esh3ar token --tenant acme --server --admin",
        "esh3ar token --tenant ACME --server",
        "esh3ar token --tenant acme --user 0790000001",
        "esh3ar send --to +962790000001",
        "esh3ar send --to +962790000001 --text a --body {}",
        "esh3ar listen",
        "esh3ar chat --as business:acme:sara",
        "esh3ar chat --as sara --with +962790000001",
        "esh3ar conversations list",
        "esh3ar conversations show --as business:acme:sara",
        "esh3ar dead requeue",
        "esh3ar dead requeue 0192f0c1-2b3c-7def-8123-456789abcdef --all",
        "esh3ar tail nonsense",
        "esh3ar topics",
        "esh3ar topics create --ingress ACME",
        "esh3ar trace x",
    ] {
        let kind = parse(line).map(|_| ()).unwrap_err().kind();
        assert!(!matches!(kind, ErrorKind::DisplayHelp | ErrorKind::DisplayVersion), "{line}");
    }
}

#[test]
fn every_command_shows_an_example_and_help_tells_the_exit_codes() {
    let mut command = Cli::command();
    let help = command.render_long_help().to_string();
    for (exit, _) in Exit::ALL {
        let number = exit as u8;
        assert!(help.contains(&format!("{number} ")), "exit code {number} is not in --help");
    }
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        let name = sub.get_name().to_owned();
        let help = sub.render_long_help().to_string();
        assert!(help.contains("Example") && help.contains("esh3ar "), "{name} shows no example:\n{help}");
        assert!(help.contains("--json"), "{name} has no --json");
    }
}

#[test]
fn a_role_alone_is_refused_with_what_it_needs() {
    for role in ["ingest", "pipeline", "gateway", "admin"] {
        let failure = run(parse(&format!("esh3ar {role}")).unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.sentence.contains("kafka://") && failure.sentence.contains("esh3ar up"), "{failure}");
    }
    for role in ["pipeline", "admin"] {
        let failure = run(parse(&format!("esh3ar {role} --listen 127.0.0.1:0")).unwrap()).unwrap_err();
        assert!(failure.sentence.contains("leave out --listen"), "{failure}");
    }
}

#[test]
fn servers_are_set_up_where_the_configuration_names_them() {
    for (command, key) in [("topics check", "stores.log"), ("schema apply", "stores.history")] {
        let failure = run(parse(&format!("esh3ar {command}")).unwrap()).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.sentence.contains(key), "{failure}");
    }
}

#[test]
fn a_client_without_a_server_says_how_to_start_one() {
    let failure = run(parse("esh3ar send --to +962790000001 --text x --data /nonexistent").unwrap()).unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    assert!(failure.sentence.contains("esh3ar up"), "{failure}");
    let failure = run(parse("esh3ar books --data /nonexistent").unwrap()).unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
    let failure = run(parse("esh3ar token --tenant acme --server --data /nonexistent").unwrap()).unwrap_err();
    assert_eq!(failure.exit, Exit::Unreachable);
}

#[test]
fn a_wrong_setting_ends_with_the_exit_code_of_usage() {
    let failure = run(parse("esh3ar up --set limits.flow.akc_ms=1").unwrap()).unwrap_err();
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.sentence.contains("limits.flow.ack_ms"), "{failure}");
}
