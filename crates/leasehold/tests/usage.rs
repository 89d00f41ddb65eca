//! What the command prints and how it ends, where no server is needed. `TRYCMD=overwrite` accepts changes.

#[test]
fn help_and_errors_are_as_written_down() {
    trycmd::TestCases::new().case("tests/command/*.trycmd");
}
