//! Puts the documents that the server answers into the binary: the problem pages and the OpenAPI description.

use std::{env, fmt::Write as _, fs, path::Path};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let here = env::var("CARGO_MANIFEST_DIR")?;
    let root = Path::new(&here).parent().ok_or("no workspace above ops")?;
    let mut code = String::from(
        "/// The page of one kind of problem.\nfn embedded(slug: &str) -> Option<&'static str> {\n    match slug {\n",
    );
    let pages = root.join("docs").join("problems");
    watch(&pages);
    let mut files: Vec<_> = fs::read_dir(&pages).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    for path in files.iter().filter(|path| path.extension().is_some_and(|ext| ext == "md")) {
        let slug = path.file_stem().unwrap_or_default().to_string_lossy();
        writeln!(code, "        {slug:?} => Some(include_str!({:?})),", path.display().to_string())?;
    }
    code.push_str("        _ => None,\n    }\n}\n\n/// The OpenAPI description, as YAML.\n");
    let openapi = root.join("schemas").join("openapi.yaml");
    watch(&openapi);
    if openapi.exists() {
        writeln!(code, "const OPENAPI: &str = include_str!({:?});", openapi.display().to_string())?;
    } else {
        code.push_str(
            "const OPENAPI: &str = \"openapi: 3.1.0\\ninfo: {title: Esh3ar, version: '1'}\\npaths: {}\\n\";\n",
        );
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("documents.rs"), code)?;
    Ok(())
}

/// Builds again when this changes; of what is not there yet, when the nearest folder that is there changes.
fn watch(path: &Path) {
    if let Some(there) = path.ancestors().find(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", there.display());
    }
}
