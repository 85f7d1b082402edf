//! The house rules that a compiler does not know: which module may use which, which packages each may name, how
//! long files, functions and lines may be, and that every file says what it is. An ordinary test, so that breaking one
//! fails.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const LINE_CHARS_MAX: usize = 120;

/// Modules from the bottom to the top, with the packages that each may name. A module uses only those above it here.
const MODULES: [(&str, &[&str]); 19] = [
    ("bugs", &[]),
    ("geometry", &["thiserror"]),
    ("memory", &["nix", "libc", "thiserror", "loom"]),
    ("doorbell", &["nix"]),
    ("mailbox", &["nix"]),
    ("tracking", &["loom"]),
    ("intent", &[]),
    ("increment", &["thiserror"]),
    ("group", &[]),
    ("storage", &["nix", "libc", "thiserror", "tracing"]),
    ("metadata", &["roaring", "crc32c", "thiserror"]),
    ("secondary", &[]),
    ("uploader", &["io_uring", "libc", "nix", "crc32c", "tracing"]),
    ("frontend", &["libublk", "io_uring", "nix", "libc", "serde_json", "thiserror", "tracing"]),
    ("volume", &["libc", "nix", "thiserror", "tracing"]),
    ("controller", &["tokio", "serde", "serde_json", "toml", "toml_edit", "nix", "thiserror", "tracing"]),
    ("control", &["tokio", "serde", "serde_json", "nix", "thiserror", "tracing"]),
    (
        "cli",
        &[
            "clap",
            "clap_complete",
            "clap_mangen",
            "indicatif",
            "serde",
            "serde_json",
            "tokio",
            "nix",
            "tracing",
            "tracing_subscriber",
        ],
    ),
    ("main", &["tracing_subscriber"]),
];

/// Packages whose use is confined. Of the others there are none.
const PACKAGES: [&str; 19] = [
    "libublk",
    "io_uring",
    "nix",
    "libc",
    "roaring",
    "crc32c",
    "tokio",
    "serde",
    "serde_json",
    "toml",
    "toml_edit",
    "thiserror",
    "tracing",
    "tracing_subscriber",
    "clap",
    "clap_complete",
    "clap_mangen",
    "indicatif",
    "loom",
];

/// Files that may hold `unsafe` code.
const UNSAFE: [&str; 5] =
    ["src/frontend/ublk_queue.rs", "src/frontend/unserved.rs", "src/memory.rs", "src/storage/", "src/uploader/ring.rs"];

fn sources(directory: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from(directory)];
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("readable").map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("readable");
            found.push((path, text));
        }
    }
    assert!(!found.is_empty(), "{directory} holds no sources");
    found.sort();
    found
}

/// The module that a file belongs to: its folder or its name below `src`.
fn module_of(path: &Path) -> String {
    let first = path.strip_prefix("src").expect("below src").components().next().expect("a name");
    Path::new(first.as_os_str()).file_stem().expect("a name").to_string_lossy().into_owned()
}

/// The code of a file: without comments and without its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or(text);
    code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn check(faults: &str) {
    assert!(faults.is_empty(), "\n{faults}");
}

/// Whether `name` stands in `line` as the first part of a path.
fn names(line: &str, name: &str) -> bool {
    let pattern = format!("{name}::");
    line.match_indices(&pattern).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

#[test]
fn a_module_uses_only_modules_above_it_in_the_list() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        if module == "lib" {
            continue;
        }
        let own = MODULES.iter().position(|(name, _)| *name == module);
        let own = own.unwrap_or_else(|| panic!("{module} is in no layer; give it one in tests/tidy.rs"));
        for (number, line) in code(&text) {
            for (other, (name, _)) in MODULES.iter().enumerate() {
                if other > own && names(line, &format!("crate::{name}")) {
                    writeln!(faults, "{}:{}: {module} may not use {name}", path.display(), number + 1)
                        .expect("a string");
                }
            }
        }
    }
    check(&faults);
}

#[test]
fn packages_are_named_only_where_they_may_be() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        let allowed = MODULES.iter().find(|(name, _)| *name == module).map_or(&[] as &[&str], |(_, allowed)| allowed);
        for (number, line) in code(&text) {
            for package in PACKAGES {
                if names(line, package) && !allowed.contains(&package) {
                    writeln!(faults, "{}:{}: {module} may not name {package}", path.display(), number + 1)
                        .expect("a string");
                }
            }
        }
    }
    check(&faults);
}

#[test]
fn files_functions_and_lines_are_short_and_every_file_says_what_it_is() {
    let mut faults = String::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        let name = path.display();
        let lines: Vec<&str> = text.lines().collect();
        if !text.starts_with("//!") {
            writeln!(faults, "{name}: does not say what it is (//!)").expect("a string");
        }
        if lines.len() > FILE_LINES_MAX {
            writeln!(faults, "{name}: {} lines", lines.len()).expect("a string");
        }
        for (number, line) in lines.iter().enumerate() {
            if line.chars().count() > LINE_CHARS_MAX {
                writeln!(faults, "{name}:{}: {} characters", number + 1, line.chars().count()).expect("a string");
            }
            if !line.is_ascii() {
                writeln!(faults, "{name}:{}: not ASCII", number + 1).expect("a string");
            }
        }
        for (number, length) in functions(&lines) {
            if length > FUNCTION_LINES_MAX {
                writeln!(faults, "{name}:{}: a function of {length} lines", number + 1).expect("a string");
            }
        }
    }
    check(&faults);
}

/// Where each function begins, and its length; formatted code closes it at its own indentation.
fn functions<'a>(lines: &'a [&'a str]) -> impl Iterator<Item = (usize, usize)> + 'a {
    lines.iter().enumerate().filter_map(|(number, line)| {
        let code = line.trim_start();
        let words: Vec<&str> = code.split(['(', '<']).next().unwrap_or("").split_whitespace().collect();
        let begins = words.len() >= 2 && words[words.len() - 2] == "fn" && !code.starts_with("//");
        let indent = line.len() - code.len();
        let close = format!("{}}}", " ".repeat(indent));
        begins.then(|| {
            let end = lines[number..].iter().position(|line| *line == close || line.trim_end().ends_with(';'));
            let end = if code.trim_end().ends_with('}') { Some(0) } else { end_of(&lines[number..], &close).or(end) };
            (number, end.map_or(0, |end| end + 1))
        })
    })
}

fn end_of(lines: &[&str], close: &str) -> Option<usize> {
    let has_body = lines.iter().take_while(|line| !line.trim_end().ends_with(';')).any(|line| line.ends_with('{'));
    has_body.then(|| lines.iter().position(|line| *line == close)).flatten()
}

#[test]
fn unsafe_code_lies_in_few_files_and_each_block_gives_its_reason() {
    let mut faults = String::new();
    for (path, text) in sources("src") {
        let name = path.display().to_string();
        let lines: Vec<(usize, &str)> = code(&text).collect();
        let has = lines.iter().any(|(_, line)| line.contains("unsafe {") || line.contains("unsafe impl"));
        if has && !UNSAFE.iter().any(|allowed| name.starts_with(allowed)) {
            writeln!(faults, "{name}: unsafe code has no place here").expect("a string");
        }
        if has && !text.contains("// SAFETY:") {
            writeln!(faults, "{name}: unsafe code without its reason").expect("a string");
        }
    }
    check(&faults);
}

#[test]
fn the_measure_of_functions_measures() {
    let text = ["fn a() {", "    b();", "}", "    pub fn c(&self) -> u8 {", "        1", "    }", "    fn d(&self);"];
    let found: Vec<(usize, usize)> = functions(&text).collect();
    assert_eq!(found, [(0, 3), (3, 3), (6, 1)]);
    assert!(names("use crate::volume::Volume;", "crate::volume") && !names("my_nix::x", "nix"));
}
