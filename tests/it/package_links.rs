//! The pages at the root of the published package: what they link to is in the package.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The files that cargo publishes.
fn packaged() -> BTreeSet<String> {
    let arguments = ["package", "--list", "--allow-dirty", "--offline", "--quiet"];
    let output = Command::new(env!("CARGO")).args(arguments).current_dir(ROOT).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| line.replace('\\', "/")).collect()
}

/// The text outside of blocks of code.
fn prose(page: &str) -> String {
    let mut in_code = false;
    let outside = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    outside.collect::<Vec<_>>().join("\n")
}

/// The targets of `[text](target)` and `![text](target)`.
fn targets(page: &str) -> Vec<String> {
    prose(page).split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())).collect()
}

/// The anchors that a site makes of the headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = prose(page)
        .lines()
        .filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase()))
        .collect::<Vec<_>>();
    let kept = |c: &char| c.is_alphanumeric() || [' ', '-', '_'].contains(c);
    headings.iter().map(|heading| heading.chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

/// The links of `page` that lead nowhere.
fn broken(page: &str, pages: &BTreeMap<String, String>, packaged: &BTreeSet<String>) -> Vec<String> {
    let is_broken = |target: &String| {
        let (file, anchor) =
            target.split_once('#').map_or((target.as_str(), None), |(file, anchor)| (file, Some(anchor)));
        let file = if file.is_empty() { page } else { file };
        !packaged.contains(file)
            || anchor.is_some_and(|anchor| !pages.get(file).is_some_and(|text| anchors(text).contains(anchor)))
    };
    let is_ours = |target: &String| !target.starts_with("https://");
    targets(&pages[page]).into_iter().filter(is_ours).filter(is_broken).collect()
}

#[test]
fn each_link_of_the_readme_and_the_pages_beside_it_leads_into_the_package() {
    let packaged = packaged();
    let is_page = |file: &&String| Path::new(file).extension().is_some_and(|extension| extension == "md");
    let pages: BTreeMap<_, _> = packaged
        .iter()
        .filter(is_page)
        .map(|file| (file.clone(), fs::read_to_string(Path::new(ROOT).join(file)).unwrap()))
        .collect();
    assert!(targets(&pages["README.md"]).len() > 10, "the links are read");
    // Those of the guide's pages are links of rustdoc, which checks them.
    for page in pages.keys().filter(|page| !page.contains('/')) {
        assert_eq!(broken(page, &pages, &packaged), Vec::<String>::new(), "{page}");
    }
}

#[test]
fn each_example_has_a_row_in_the_guide() {
    let page = fs::read_to_string(Path::new(ROOT).join("src/guide/examples.md")).unwrap();
    for example in fs::read_dir(Path::new(ROOT).join("examples")).unwrap() {
        let name = example.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        let is_told = page.contains(&format!("`examples/{name}`")) || page.contains(&format!("--example {name}`"));
        assert!(is_told, "{name}");
    }
}

#[test]
fn broken_links_are_found() {
    let text = "[a](b.md) [c](#here) [d](#nowhere) [e](x.md) [f](b.md#it-is)\n```text\n[g](y.md)\n```\n## Here\n";
    let pages = [("a.md", text), ("b.md", "# It *is*")].map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    let packaged = ["a.md", "b.md"].map(str::to_owned).into();
    assert_eq!(broken("a.md", &pages, &packaged), ["#nowhere", "x.md"]);
}
