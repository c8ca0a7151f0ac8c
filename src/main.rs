//! The program `gradstone`; all of it is in [`gradstone::cli`].

fn main() -> std::process::ExitCode {
    gradstone::cli::main()
}
