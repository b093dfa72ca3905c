//! What is shipped for running on many machines says what it means: it parses, names pinned versions, passes configuration
//! that this release takes, and starts roles that there are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use ops::compose::Role;
use serde_yaml_ng::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

fn read(path: &Path) -> Vec<Value> {
    use serde::Deserialize;
    let text = std::fs::read_to_string(path).unwrap();
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents.map(|one| Value::deserialize(one).unwrap_or_else(|why| panic!("{}: {why}", path.display()))).collect()
}

/// A YAML mapping with its merges (`<<`) done.
fn merged(mut value: Value) -> Value {
    value.apply_merge().unwrap();
    value
}

fn compose() -> Value {
    merged(read(&root().join("docker-compose.yml")).remove(0))
}

fn manifests() -> Vec<(String, Value)> {
    let mut files: Vec<_> =
        std::fs::read_dir(root().join("ops/k8s")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.iter().flat_map(|path| read(path).into_iter().map(move |one| (name(path), merged(one)))).collect()
}

/// Every value under a key, at any depth.
fn all<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Mapping(map) => {
            for (name, inner) in map {
                if name.as_str() == Some(key) {
                    found.push(inner);
                }
                all(inner, key, found);
            }
        }
        Value::Sequence(list) => list.iter().for_each(|inner| all(inner, key, found)),
        _ => {}
    }
}

fn under<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    all(value, key, &mut found);
    found
}

fn of_kind<'a>(manifests: &'a [(String, Value)], kind: &'a str) -> Vec<&'a Value> {
    manifests.iter().map(|(_, one)| one).filter(|one| one["kind"].as_str() == Some(kind)).collect()
}

/// Pinned: a tag that is a version.
fn pinned(image: &str) -> bool {
    let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
    tag.matches('.').count() >= 2 && tag.starts_with(|c: char| c.is_ascii_digit())
}

/// Our variables, as this release reads them.
fn takes(what: &str, environment: &BTreeMap<String, String>) {
    let ours = environment.iter().filter(|(name, _)| name.starts_with("ESH3AR_"));
    let ours: Vec<_> = ours.map(|(name, value)| (name.clone(), value.clone())).collect();
    assert!(!ours.is_empty(), "{what} configures nothing");
    if let Err(why) = ops::config::load(None, ours, &[], &[]) {
        panic!("{what}: {why}");
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(yes) => yes.to_string(),
        _ => String::new(),
    }
}

#[test]
fn compose_names_pinned_images_roles_that_there_are_and_configuration_that_is_taken() {
    let file = compose();
    let services = file["services"].as_mapping().unwrap();
    let mut roles = Vec::new();
    for (name, service) in services {
        let (name, image) = (name.as_str().unwrap(), service["image"].as_str().unwrap());
        assert!(pinned(image), "{name}: {image} is not pinned");
        let one_shot = service["restart"].as_str() == Some("no");
        let checked = service.get("healthcheck").is_some();
        assert!(one_shot || checked, "{name} has no health check");
        for volume in service.get("volumes").and_then(Value::as_sequence).into_iter().flatten() {
            let from = volume.as_str().unwrap().split(':').next().unwrap();
            let there =
                if from.starts_with('.') { root().join(from).exists() } else { file["volumes"].get(from).is_some() };
            assert!(there, "{name} mounts {from}, which is not there");
        }
        if image.starts_with("esh3ar:") {
            let environment = service["environment"].as_mapping().unwrap();
            takes(name, &environment.iter().map(|(k, v)| (text(k), text(v))).collect());
            roles.push(name.to_owned());
            if let Some(role) = Role::ALONE.iter().find(|role| role.word() == name) {
                assert_eq!(service["command"][0].as_str(), Some(role.word()));
            }
        }
    }
    for role in Role::ALONE {
        assert!(roles.iter().any(|name| name == role.word()), "compose starts no {}", role.word());
    }
    for depends in under(&file, "depends_on") {
        for (on, _) in depends.as_mapping().unwrap() {
            assert!(services.contains_key(on), "{} is waited for and not there", text(on));
        }
    }
}

#[test]
fn kubernetes_runs_every_role_with_probes_budgets_and_configuration_that_is_taken() {
    let manifests = manifests();
    let of = |kind| of_kind(&manifests, kind);
    let named = |kind, name: &str| of(kind).iter().any(|one| one["metadata"]["name"].as_str() == Some(name));
    // Shared variables, as every container of a role gets them.
    let mut shared = BTreeMap::new();
    for (kind, field) in [("ConfigMap", "data"), ("Secret", "stringData")] {
        for one in of(kind).into_iter().filter(|one| one["metadata"]["name"].as_str() == Some("esh3ar")) {
            shared.extend(one[field].as_mapping().unwrap().iter().map(|(k, v)| (text(k), text(v))));
        }
    }
    takes("ops/k8s", &shared);
    let mut run = Vec::new();
    for one in of("Deployment").into_iter().chain(of("StatefulSet")) {
        let (name, pod) = (one["metadata"]["name"].as_str().unwrap(), &one["spec"]["template"]["spec"]);
        let container = &pod["containers"][0];
        let role = container["args"][0].as_str().unwrap();
        let known = Role::ALONE.iter().chain([&Role::All]).find(|known| known.word() == role);
        let known = known.unwrap_or_else(|| panic!("{name} starts {role}, which is no role"));
        run.push(role.to_owned());
        let ports = under(container, "containerPort").len();
        assert_eq!(ports, if known.is_public() { 2 } else { 1 }, "{name}'s listeners");
        for (probe, path) in
            [("startupProbe", "/health/live"), ("livenessProbe", "/health/live"), ("readinessProbe", "/health/ready")]
        {
            assert_eq!(container[probe]["httpGet"]["path"].as_str(), Some(path), "{name}'s {probe}");
        }
        assert!(
            container["resources"]["limits"]["memory"].is_string() && container["resources"]["requests"].is_mapping()
        );
        let mut own = if container.get("envFrom").is_some() { shared.clone() } else { BTreeMap::new() };
        for variable in container["env"].as_sequence().into_iter().flatten() {
            own.insert(text(&variable["name"]), variable.get("value").map_or_else(|| "a-name".to_owned(), text));
        }
        takes(name, &own);
        // A drain fits into the time before the pod is killed.
        let drain: u64 = own.get("ESH3AR_LIMITS__SOCKET__DRAIN_MS").map_or(10_000, |ms| ms.parse().unwrap());
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        let sleep = container["lifecycle"]["preStop"]["exec"]["command"][1].as_str().map_or(0, |s| s.parse().unwrap());
        assert!(grace > sleep + drain / 1_000 + 20, "{name} is killed in the middle of its drain");
        if *known != Role::All {
            assert!(named("PodDisruptionBudget", name), "{name} has no disruption budget");
        }
        // Whoever clients reach is announced as gone before it goes.
        assert!(!known.is_public() || sleep > 0, "{name} goes while it is still announced");
    }
    for role in Role::ALONE {
        assert!(run.iter().any(|there| there == role.word()), "nothing runs {}", role.word());
    }
    let scaled = of("HorizontalPodAutoscaler");
    for one in &scaled {
        let target = one["spec"]["scaleTargetRef"]["name"].as_str().unwrap();
        assert!(named("Deployment", target));
        assert_eq!(one["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"].as_u64(), Some(70));
    }
    let waiting: Vec<_> = scaled.iter().flat_map(|one| under(one, "external")).collect();
    assert!(waiting.iter().any(|metric| metric["metric"]["name"].as_str() == Some("esh3ar_lane_waiting")
        && metric["target"]["value"].as_str() == Some("5000")));
    for (file, one) in &manifests {
        for image in under(one, "image") {
            assert!(pinned(image.as_str().unwrap()), "{file}: {} is not pinned", text(image));
        }
    }
    let kustomization = &manifests.iter().find(|(file, _)| file == "kustomization.yaml").unwrap().1;
    for file in kustomization["resources"].as_sequence().unwrap() {
        assert!(root().join("ops/k8s").join(file.as_str().unwrap()).exists(), "{}", text(file));
    }
}

#[test]
fn the_image_is_built_with_every_adapter_from_pinned_bases() {
    let text = std::fs::read_to_string(root().join("ops/Dockerfile")).unwrap();
    assert!(text.contains("--features servers") && text.contains("--locked"));
    let bases = text.lines().filter_map(|line| line.strip_prefix("FROM ")).map(|line| line.split(' ').next().unwrap());
    for base in bases {
        assert!(base.rsplit_once(':').is_some_and(|(_, tag)| tag.contains('.')), "{base} is not pinned");
    }
    let rust = text.lines().find_map(|line| line.strip_prefix("FROM rust:")).unwrap();
    let workspace = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let least = workspace.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap().trim_matches('"');
    assert!(rust.starts_with(least), "the image builds with {rust}, the workspace asks for {least}");
}
