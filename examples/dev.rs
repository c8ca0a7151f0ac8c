//! dev
use gradstone::train::{Observer, RunDir, StepMetrics, session::Session, config};
struct Print;
impl Observer for Print {
    fn step(&mut self, m: &StepMetrics) {
        if m.step % 25 == 0 || m.eval_accuracy.is_some() { println!("{}", serde_json::to_string(m).unwrap()); }
    }
    fn message(&mut self, t: &str) { println!("{t}"); }
}
fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let settings = config::load(&gradstone::recipes::arithmetic(), None, &args).unwrap();
    let dir = std::path::PathBuf::from("/tmp/devrun"); let _ = std::fs::remove_dir_all(&dir);
    let run = RunDir::create(&dir, &config::to_toml(&settings).unwrap()).unwrap();
    let t = std::time::Instant::now();
    let mut s = Session::new(settings).unwrap();
    println!("params {}", s.model().parameters().elements());
    let r = gradstone::device::cpu::pool::install(|| { let mut s2 = s; let mut p = Print; let r = s2.run(&run, &mut p); r });
    println!("{:?} {:.1}s", r, t.elapsed().as_secs_f64());
}
