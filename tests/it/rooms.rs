//! The order of the rooms: `ARCHITECTURE.md` has the one list, and the sources keep to it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The rooms in the order of the list: each may use those before it.
fn rooms() -> Vec<String> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = text.split("\n## Rooms\n").nth(1).expect("a section `Rooms`");
    let list = section.split("```text\n").nth(1).and_then(|rest| rest.split("\n```").next()).expect("a list");
    list.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A source file: its room, where it is, and its text without comments and string literals.
struct Source {
    room: String,
    path: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let (mut pending, mut sources) = (vec![src.clone()], Vec::new());
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !is_for_users(&path) {
                let relative = path.strip_prefix(&src).unwrap();
                let first = Path::new(relative.components().next().unwrap().as_os_str());
                let room = first.file_stem().unwrap().to_str().unwrap().to_owned();
                let code = without_comments_and_texts(&fs::read_to_string(&path).unwrap());
                sources.push(Source { room, path: relative.display().to_string(), code });
            }
        }
    }
    sources
}

/// The root, and the guide, which is documentation alone: both speak in public names.
fn is_for_users(path: &Path) -> bool {
    path.ends_with("src/lib.rs") || path.ends_with("src/guide.rs")
}

fn without_comments_and_texts(text: &str) -> String {
    let mut code = String::new();
    for line in text.lines() {
        let mut in_text = false;
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            if !in_text && line[at..].starts_with("//") {
                break;
            }
            if c == '"' && before != '\\' && before != '\'' {
                in_text = !in_text;
            } else if !in_text {
                code.push(c);
            }
            before = c;
        }
        code.push('\n');
    }
    code
}

/// The first names of all paths that begin with `crate::`, those of a group each.
fn used(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            names.extend(first_names(group));
        } else {
            names.push(name(rest));
        }
    }
    names
}

/// The first name of each item of a group, up to its closing brace.
fn first_names(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut is_first) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_first = true,
            c if is_first && !c.is_whitespace() => {
                names.push(name(&group[at..]));
                is_first = false;
            }
            _ => {}
        }
    }
    names
}

fn name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn a_room_uses_only_the_rooms_before_it() {
    let rooms = rooms();
    let rank = |room: &str| rooms.iter().position(|other| other == room);
    let mut against = Vec::new();
    for Source { room, path, code } in sources() {
        let own = rank(&room).unwrap_or_else(|| panic!("{room} ({path}) is not in the list of ARCHITECTURE.md"));
        for used in used(&code) {
            match rank(&used) {
                Some(other) if other <= own => {}
                Some(_) => against.push(format!("{path} uses {used}, which stands below {room}")),
                None => against.push(format!("{path} uses crate::{used}, which is no room")),
            }
        }
    }
    assert!(against.is_empty(), "{against:#?}");
}

#[test]
fn every_room_of_the_list_exists() {
    let rooms = rooms();
    let found: std::collections::BTreeSet<_> = sources().into_iter().map(|source| source.room).collect();
    let missing: Vec<_> = rooms.iter().filter(|room| !found.contains(*room)).collect();
    assert!(rooms.len() > 10 && missing.is_empty(), "{missing:?}");
}

#[test]
fn an_inherent_impl_stands_in_the_room_of_its_type() {
    /// With the methods of the one exception that ARCHITECTURE.md names.
    const EXCEPTIONS: [(&str, &str); 1] = [("ActiveSessions", "http/layer.rs")];
    let sources = sources();
    let mut homes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for source in &sources {
        for kind in ["struct ", "enum "] {
            for (at, _) in source.code.match_indices(kind) {
                let is_word = !source.code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                if is_word {
                    homes.entry(name(&source.code[at + kind.len()..])).or_default().push(&source.room);
                }
            }
        }
    }
    let mut strays = Vec::new();
    for source in &sources {
        for line in source.code.lines().filter(|line| line.starts_with("impl") && !line.contains(" for ")) {
            let ty = name(after_generics(line.trim_start_matches("impl")).trim_start());
            let is_home = homes.get(&ty).is_none_or(|rooms| rooms.contains(&source.room.as_str()));
            if !is_home && !EXCEPTIONS.contains(&(ty.as_str(), source.path.as_str())) {
                strays.push(format!("{}: impl {ty}, a type of {:?}", source.path, homes[&ty]));
            }
        }
    }
    assert!(strays.is_empty(), "{strays:#?}");
}

/// `<'a, T: Into<U>> Name` without the first part.
fn after_generics(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ if depth == 0 => return &text[at..],
            _ => {}
        }
    }
    text
}

#[test]
fn the_reader_of_uses_sees_groups_and_paths() {
    let code = "use crate::{\n a::{B, c::D},\n e::F, g,\n};\nfn f() { crate::h::i(); $crate::no; }\npub(crate) use x;";
    assert_eq!(used(code), ["a", "e", "g", "h"]);
    assert_eq!(without_comments_and_texts("a // crate::b\n\"crate::c\" d"), "a \n d\n");
    assert_eq!(after_generics("<'a, T: Into<U>> Name<T> {"), " Name<T> {");
}
