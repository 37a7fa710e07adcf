//! The guide shows the code that these tests run.

/// The blocks of Rust of a page.
fn blocks(page: &str) -> Vec<&str> {
    page.split("```rust").skip(1).map(|block| block.split_once('\n').unwrap().1.split("```").next().unwrap()).collect()
}

/// Without the comments of the documentation.
fn code(source: &str) -> String {
    source.lines().filter(|line| !line.trim_start().starts_with("//")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn each_block_of_the_guide_is_in_a_tested_module() {
    let servers = blocks(include_str!("../../../../src/guide/servers.md"));
    let operations = blocks(include_str!("../../../../src/guide/operations.md"));
    assert_eq!(servers.len(), 4);
    let modules = [
        include_str!("../../src/tls.rs"),
        include_str!("../../src/unix.rs"),
        include_str!("../../src/hyper.rs"),
        include_str!("../../src/worker.rs"),
        include_str!("../../src/systemd.rs"),
    ];
    let modules = modules.map(code);
    let of_systemd = operations.into_iter().filter(|block| block.contains("sd_notify")).collect::<Vec<_>>();
    assert_eq!(of_systemd.len(), 1);
    for block in servers.into_iter().chain(of_systemd) {
        assert!(modules.iter().any(|module| module.contains(code(block).trim())), "not tested:\n{block}");
    }
}
