//! The publications: `openapi.yaml`, `asyncapi.yaml` and the JSON Schemas say what the routes, frames and records really are.

use std::collections::{BTreeMap, BTreeSet};

use schemas::{
    Code, Draft, Problem, Topic,
    draft::ChatDraft,
    frame::{ClientFrame, Close, ServerFrame},
    limits::Limits,
    port::Dead,
    view::{Item, StatusChange},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::reading::{code, files, none, read};

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&read(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn keys(value: &Value) -> BTreeSet<String> {
    value.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

/// Routes as the sources set them up: `.route("/path", get(…).post(…))`.
fn routes() -> BTreeSet<(String, String)> {
    const METHODS: [&str; 5] = ["get", "post", "put", "delete", "patch"];
    let mut found = BTreeSet::new();
    for folder in ["ingest", "gateway", "ops"] {
        for (_, text) in files(&format!("{folder}/src"), ".rs") {
            // What tests set up is no route of ours.
            let code = code(&text);
            let code = code.split("mod tests {").next().unwrap_or_default();
            for piece in code.split(".route(").skip(1) {
                let mut depth = 1;
                let end = piece.find(|c| {
                    depth += i32::from(c == '(') - i32::from(c == ')');
                    depth == 0
                });
                let call = &piece[..end.unwrap_or(piece.len())];
                let Some(path) = call.split('"').nth(1) else { continue };
                let handlers = call.split('"').skip(2).collect::<String>();
                for method in METHODS {
                    if crate::reading::names(&handlers, method, "(") {
                        found.insert((method.to_owned(), path.to_owned()));
                    }
                }
            }
        }
    }
    found
}

#[test]
fn openapi_names_every_route_and_no_other() {
    let openapi = yaml("schemas/openapi.yaml");
    let methods = ["get", "post", "put", "delete", "patch"];
    let paths = openapi["paths"].as_object().expect("paths");
    let told: BTreeSet<(String, String)> = paths
        .iter()
        .flat_map(|(path, item)| {
            let methods = keys(item).into_iter().filter(|key| methods.contains(&key.as_str()));
            methods.map(|method| (method, path.clone())).collect::<Vec<_>>()
        })
        .collect();
    let real = routes();
    assert!(real.len() > 10, "routes are looked for in the wrong way: {real:?}");
    let mut findings: Vec<String> = real.difference(&told).map(|r| format!("openapi.yaml lacks {r:?}")).collect();
    findings.extend(told.difference(&real).map(|r| format!("openapi.yaml tells of {r:?}, which is not there")));
    none(findings);
}

#[test]
fn openapi_names_every_problem_with_its_status() {
    let openapi = yaml("schemas/openapi.yaml");
    let told = openapi["components"]["schemas"]["Problem"]["properties"]["type"]["enum"].as_array().cloned();
    let told: BTreeSet<String> =
        told.unwrap_or_default().iter().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    let real: BTreeSet<String> = Code::ALL.iter().map(|code| format!("/problems/{}", code.slug())).collect();
    assert_eq!(told, real);
    // Every refusal an operation names must be of a status that some code has.
    let statuses: BTreeSet<String> = Code::ALL.iter().map(|code| code.status().to_string()).collect();
    let responses = openapi["components"]["responses"].as_object().expect("responses");
    let mut findings = Vec::new();
    for (path, item) in openapi["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            for status in keys(&operation["responses"]) {
                if status.starts_with(['4', '5']) && !statuses.contains(&status) {
                    findings.push(format!("{method} {path} answers {status}, which no problem has"));
                }
                let reference = operation["responses"][&status]["$ref"].as_str().unwrap_or_default();
                let name = reference.rsplit('/').next().unwrap_or_default();
                if !name.is_empty() && !responses.contains_key(name) {
                    findings.push(format!("{method} {path} {status}: there is no response {name}"));
                }
            }
        }
    }
    none(findings);
}

/// Every `$ref` within a document.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|v| references(v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, found)),
        _ => {}
    }
}

#[test]
fn every_reference_of_the_publications_leads_somewhere() {
    let mut findings = Vec::new();
    for path in ["schemas/openapi.yaml", "schemas/asyncapi.yaml"] {
        let document = yaml(path);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 10, "{path}: references are looked for in the wrong way");
        for reference in found {
            let there = reference.strip_prefix('#').is_some_and(|pointer| document.pointer(pointer).is_some());
            if !there {
                findings.push(format!("{path}: {reference}"));
            }
        }
    }
    none(findings);
}

#[test]
fn openapi_requests_are_what_the_door_reads() {
    let openapi = yaml("schemas/openapi.yaml");
    let examples = openapi["components"]["examples"].as_object().expect("examples");
    let mut read = 0;
    for (name, example) in examples {
        let text = example["value"].to_string();
        if name.starts_with("message_") {
            Draft::<String>::parse(text.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
        } else if name.starts_with("broadcast_") {
            Draft::<Vec<String>>::parse(text.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
        } else if name.starts_with("chat_") {
            ChatDraft::parse(text.as_bytes()).unwrap_or_else(|why| panic!("{name}: {why}"));
        } else {
            continue;
        }
        read += 1;
    }
    assert!(read >= 4);
}

/// Messages of a channel of `asyncapi.yaml` by their frame's type.
fn frames(asyncapi: &Value, group: &str) -> BTreeMap<String, Value> {
    let messages = asyncapi["components"]["messages"].as_object().expect("messages");
    let of_group = messages.iter().filter_map(|(name, message)| Some((name.strip_prefix(group)?, message)));
    of_group.map(|(name, message)| (name.trim_start_matches('_').to_owned(), message.clone())).collect()
}

/// Examples are read by the types the socket uses, and written back as they were.
fn examples_read<T: Serialize + DeserializeOwned>(name: &str, message: &Value, findings: &mut Vec<String>) {
    let examples = message["examples"].as_array().cloned().unwrap_or_default();
    if examples.is_empty() {
        findings.push(format!("{name} has no example"));
    }
    for example in &examples {
        match serde_json::from_value::<T>(example["payload"].clone()).map(|frame| serde_json::to_value(frame).ok()) {
            Ok(Some(back)) if back == example["payload"] => {}
            Ok(back) => findings.push(format!("{name}: its example reads back as {back:?}")),
            Err(why) => findings.push(format!("{name}: its example is not read: {why}")),
        }
    }
    let told = keys(&message["payload"]["properties"]);
    let shown: BTreeSet<String> = examples.iter().flat_map(|example| keys(&example["payload"])).collect();
    findings.extend(shown.difference(&told).map(|field| format!("{name}: its schema lacks `{field}`")));
    findings.extend(told.difference(&shown).map(|field| format!("{name}: no example shows `{field}`")));
}

#[test]
fn asyncapi_names_every_frame_as_it_is() {
    let asyncapi = yaml("schemas/asyncapi.yaml");
    let (from_server, from_client) = (frames(&asyncapi, "server_"), frames(&asyncapi, "client_"));
    let sorted = |types: &[&str]| types.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(from_server.keys().cloned().collect::<BTreeSet<_>>(), sorted(&ServerFrame::TYPES));
    assert_eq!(from_client.keys().cloned().collect::<BTreeSet<_>>(), sorted(&ClientFrame::TYPES));
    let mut findings = Vec::new();
    for (name, message) in from_server {
        examples_read::<ServerFrame>(&format!("server {name}"), &message, &mut findings);
    }
    for (name, message) in from_client {
        examples_read::<ClientFrame>(&format!("client {name}"), &message, &mut findings);
    }
    none(findings);
}

#[test]
fn asyncapi_and_the_protocol_page_name_every_close_code() {
    let asyncapi = yaml("schemas/asyncapi.yaml");
    let page = read("docs/protocol.md");
    let told = asyncapi["components"]["x-close-codes"].as_object().expect("x-close-codes");
    assert_eq!(told.len(), Close::ALL.len());
    for close in Close::ALL {
        let (code, word) = (close.code().to_string(), close.word());
        assert_eq!(told[&code]["word"], word, "{code}");
        assert_eq!(told[&code]["come_back"], close.come_back(), "{code}");
        assert!(page.contains(&format!("| {code} | `{word}` |")), "docs/protocol.md does not list {code} {word}");
    }
}

#[test]
fn asyncapi_names_every_topic_of_the_log() {
    let asyncapi = yaml("schemas/asyncapi.yaml");
    let channels = asyncapi["channels"].as_object().expect("channels");
    let told: BTreeSet<&str> = channels.values().filter_map(|c| c["address"].as_str()).collect();
    let real: BTreeSet<&str> = Topic::all().map(Topic::name).chain(["/v1/ws"]).collect();
    assert_eq!(told, real);
}

/// A JSON Schema of a record: its examples are read by the type and written back as they were, and together they show every
/// property it has, no more and no fewer.
fn record<T: Serialize + DeserializeOwned>(path: &str) -> Value {
    let schema: Value = serde_json::from_str(&read(path)).unwrap_or_else(|why| panic!("{path}: {why}"));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{path}");
    let examples = schema["examples"].as_array().unwrap_or_else(|| panic!("{path} has no examples"));
    let mut shown = BTreeSet::new();
    for example in examples {
        let value: T = serde_json::from_value(example.clone()).unwrap_or_else(|why| panic!("{path}: {why}"));
        assert_eq!(&serde_json::to_value(&value).expect("it writes"), example, "{path}");
        shown.extend(keys(example));
    }
    assert_eq!(shown, keys(&schema["properties"]), "{path}: the examples together show every property");
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for field in required.iter().filter_map(Value::as_str) {
        assert!(examples.iter().all(|example| example.get(field).is_some()), "{path}: `{field}` is not always there");
    }
    schema
}

#[test]
fn published_records_are_what_the_service_reads_and_writes() {
    let draft = record::<Draft>("schemas/json/draft.json");
    record::<Item>("schemas/json/item.json");
    record::<StatusChange>("schemas/json/status-change.json");
    record::<Dead>("schemas/json/dead-letter.json");
    record::<Problem>("schemas/json/problem.json");
    let limits = Limits::default();
    assert_eq!(draft["properties"]["subject"]["maxLength"], limits.message.subject_chars);
    assert_eq!(draft["additionalProperties"], false);
}
