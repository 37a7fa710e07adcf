//! Mistakes that do not compile, and what the compiler says of them.

#[test]
fn the_compiler_names_the_mistake() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
