//! The task of a file: problems to train on, problems that are held out, and what was found wrong with records.

use super::columns::{Columns, GUESS};
use super::conversion;
use super::fingerprint::fingerprint;
use super::format::records;
use super::records::{Records, Source};
use super::settings::{FileFormat, FileSettings};
use crate::device::cpu::pool;
use crate::error::{Error, Result};
use crate::tasks::episode::Example;
use crate::tasks::epochs::Epochs;
use crate::tasks::final_answer::FinalAnswer;
use crate::tasks::problem::Problem;
use crate::tasks::task::{Language, Task};
use crate::tasks::verifier::Verifier;
use rayon::prelude::*;
use std::collections::HashSet;
use std::path::Path;

/// The problems of a file, some of them held out.
#[derive(Debug)]
pub struct FileProblems {
    trained: Part,
    held_out: Part,
    epochs: Epochs,
    skip_bad: bool,
}

/// Problems of one file with the places where they stand.
#[derive(Debug)]
struct Part {
    source: Source,
    problems: Vec<Problem>,
    /// `[problems]`
    numbers: Vec<usize>,
}

/// A file that was read.
pub struct Opened {
    /// Its problems.
    pub problems: FileProblems,
    /// The settings with what was found in place of what they left open: columns and fingerprints.
    pub settings: FileSettings,
    /// What the user should know: what was guessed, what was left out.
    pub notices: Vec<String>,
}

/// How records become problems.
struct Reading<'a> {
    prompt: &'a str,
    answer: &'a str,
    /// The table of settings that `prompt` and `answer` stand in.
    key: &'a str,
    format: &'a FileFormat,
}

impl FileProblems {
    /// Reads and checks the files. Without a path of its own, the file for evaluation is all there is.
    ///
    /// Prompts that are held out are left out of what is trained on, so the two never meet.
    ///
    /// # Errors
    /// [`Error::is_io`] when a file cannot be read; [`Error::is_state`] when one is not what its fingerprint says;
    /// [`Error::is_format`] when one has no readable format or no column for prompts, when records cannot be used and are not
    /// to be left out (the first of them with their lines), and when nothing is left; [`Error::is_invalid`] for settings that
    /// make no sense.
    pub fn open(settings: &FileSettings) -> Result<Opened> {
        let mut settings = settings.clone();
        let mut notices = Vec::new();
        let format = settings.format.clone();
        let trained = if settings.path.as_os_str().is_empty() && settings.evaluation.is_some() {
            None
        } else {
            let bytes = bytes(&settings.path, &mut settings.fingerprint)?;
            let reading = Reading {
                prompt: &format.prompt,
                answer: &format.answer,
                key: "task.format",
                format: &format,
            };
            let (part, columns) = reading.part(bytes, &settings.path, &mut notices)?;
            (settings.format.prompt, settings.format.answer) = (columns.prompt, columns.answer);
            Some(part)
        };
        let held_out = match &mut settings.evaluation {
            None => None,
            Some(_) if format.held_out > 0 => {
                return Err(Error::invalid(
                    "task.format.held_out takes problems of the training file, and task.evaluation is a file of its own: give one",
                ));
            }
            Some(file) => {
                let bytes = bytes(&file.path, &mut file.fingerprint)?;
                let reading = Reading {
                    prompt: &file.prompt,
                    answer: &file.answer,
                    key: if settings.path.as_os_str().is_empty() {
                        "task.format"
                    } else {
                        "task.evaluation"
                    },
                    format: &format,
                };
                let (part, columns) = reading.part(bytes, &file.path, &mut notices)?;
                (file.prompt, file.answer) = (columns.prompt, columns.answer);
                Some(part)
            }
        };
        let (trained, held_out) = match (trained, held_out) {
            (Some(trained), None) => trained.split(format.held_out)?,
            (Some(trained), Some(held_out)) => (trained, held_out),
            (None, Some(held_out)) => (held_out.emptied(), held_out),
            (None, None) => return Err(Error::invalid("task.path names no file")),
        };
        let problems = FileProblems::apart(trained, held_out, format.skip_bad, &mut notices)?;
        Ok(Opened { problems, settings, notices })
    }

    /// The two parts without the prompts of the second in the first, and without repetitions in the second.
    fn apart(
        mut trained: Part,
        mut held_out: Part,
        skip_bad: bool,
        notices: &mut Vec<String>,
    ) -> Result<FileProblems> {
        let mut seen = HashSet::new();
        let all = held_out.problems.len();
        held_out.retain(|problem| seen.insert(problem.parts.clone()));
        let repeated = all - held_out.problems.len();
        if repeated > 0 {
            let name = &held_out.source.name;
            notices.push(format!(
                "{name}: {repeated} of {all} held-out prompts occur twice and are asked once"
            ));
        }
        let before = trained.problems.len();
        trained.retain(|problem| !seen.contains(&problem.parts));
        let (name, left) = (trained.source.name.clone(), trained.problems.len());
        if before > 0 && left == 0 {
            return Err(Error::format(format!("{name}: every training prompt is also held out")));
        }
        if left < before {
            notices.push(format!(
                "{name}: {} of {before} problems are also held out and are not trained on",
                before - left
            ));
        }
        if left > 0 {
            notices
                .push(format!("{left} problems to train on, {} held out", held_out.problems.len()));
        }
        let mut all = FileProblems { trained, held_out, epochs: Epochs::new(0), skip_bad };
        all.number()?;
        Ok(all)
    }

    /// Numbers the problems in their order.
    fn number(&mut self) -> Result<()> {
        let count = self.trained.problems.len();
        let size = u32::try_from(count).map_err(|_| {
            Error::format(format!("{}: {count} problems", self.trained.source.name))
        })?;
        for (problem, id) in
            self.trained.problems.iter_mut().chain(&mut self.held_out.problems).zip(0..)
        {
            problem.id = id;
        }
        self.epochs = Epochs::new(size);
        Ok(())
    }

    /// How many problems are trained on and how many are held out.
    pub fn sizes(&self) -> (usize, usize) {
        (self.trained.problems.len(), self.held_out.problems.len())
    }
}

/// The content of a file, which is what its fingerprint says; an absent fingerprint is filled in.
///
/// # Errors
/// [`Error::is_io`] when it cannot be read, [`Error::is_invalid`] for what is no file, [`Error::is_state`] when it is another one.
pub fn bytes(path: &Path, known: &mut Option<String>) -> Result<Vec<u8>> {
    let place = path.display();
    let reading = |e| Error::io(format!("reading {place}"), e);
    // A device or a pipe may never end, and would be another one for a run that goes on.
    if !std::fs::metadata(path).map_err(reading)?.is_file() {
        return Err(Error::invalid(format!("{place} is not a regular file")));
    }
    let bytes = std::fs::read(path).map_err(reading)?;
    let found = fingerprint(&bytes);
    match known {
        Some(known) if *known != found => Err(Error::state(format!(
            "{place} has changed since the run began: it has {found}, and had {known}\n\
             put the old file back, or go on with this one: --accept-changes"
        ))),
        _ => {
            *known = Some(found);
            Ok(bytes)
        }
    }
}

impl Reading<'_> {
    /// The problems of a file.
    fn part(
        &self,
        bytes: Vec<u8>,
        path: &Path,
        notices: &mut Vec<String>,
    ) -> Result<(Part, Columns)> {
        let records = records(bytes, path)?;
        let total = records.good.len() + records.bad.len();
        if total == 0 {
            return Err(Error::format(format!("{}: no problem in the file", records.source.name)));
        }
        let columns = if records.good.is_empty() {
            Columns { prompt: String::new(), answer: String::new() }
        } else {
            Columns::of(&records, self.prompt, self.answer, self.key)?
        };
        if !records.good.is_empty() && [self.prompt, self.answer].contains(&GUESS) {
            notices.push(format!(
                "{}: {} (by the names of its columns)",
                records.source.name,
                columns.said()
            ));
        }
        let Records { source, good, bad } = records;
        let mut faults: Vec<(usize, String)> =
            bad.into_iter().map(|one| (one.number, one.fault)).collect();
        let mut part = Part { source, problems: Vec::new(), numbers: Vec::new() };
        for record in good {
            match conversion::problem(record.fields, &columns) {
                Ok(problem) => {
                    part.problems.push(problem);
                    part.numbers.push(record.number);
                }
                Err(fault) => faults.push((record.number, fault)),
            }
        }
        faults.sort_by_key(|(number, _)| *number);
        let faults: Vec<(String, String)> =
            faults.into_iter().map(|(number, fault)| (part.source.place(number), fault)).collect();
        notices.extend(left_out(&faults, total, self.format.skip_bad, "task.format")?);
        if part.problems.is_empty() {
            return Err(Error::format(format!(
                "{}: no usable problem in the file",
                part.source.name
            )));
        }
        Ok((part, columns))
    }
}

/// What is said of records that are left out, each with its place and its fault. `key` is the table of settings that has
/// `skip_bad`.
///
/// # Errors
/// [`Error::is_format`] with the first of them where they are not to be left out.
pub fn left_out(
    faults: &[(String, String)],
    total: usize,
    skip: bool,
    key: &str,
) -> Result<Option<String>> {
    const SHOWN: usize = 5;
    let line = |(place, fault): &(String, String)| format!("{place}: {fault}");
    let count = faults.len();
    match faults {
        [] => Ok(None),
        [first, ..] if skip => {
            Ok(Some(format!("{count} of {total} records are left out, e.g. {}", line(first))))
        }
        [one] => Err(Error::format(format!("{}\n{key}.skip_bad = true leaves it out", line(one)))),
        _ => {
            let mut lines: Vec<String> = faults.iter().take(SHOWN).map(line).collect();
            if count > SHOWN {
                lines.push(format!("and {} more", count - SHOWN));
            }
            let lines = lines.join("\n");
            Err(Error::format(format!(
                "{count} of {total} records cannot be used ({key}.skip_bad = true leaves them out)\n{lines}"
            )))
        }
    }
}

impl Part {
    fn emptied(&self) -> Part {
        Part { source: self.source.clone(), problems: Vec::new(), numbers: Vec::new() }
    }

    fn retain(&mut self, mut keep: impl FnMut(&Problem) -> bool) {
        let kept: Vec<bool> = self.problems.iter().map(&mut keep).collect();
        let (mut first, mut second) = (kept.iter(), kept.iter());
        self.problems.retain(|_| first.next() == Some(&true));
        self.numbers.retain(|_| second.next() == Some(&true));
    }

    /// The last problems apart, to be held out: `wanted`, or a tenth.
    fn split(mut self, wanted: usize) -> Result<(Part, Part)> {
        let total = self.problems.len();
        let wanted = if wanted == 0 { total.div_ceil(10) } else { wanted };
        if wanted >= total {
            return Err(Error::format(format!(
                "{}: {wanted} of {total} problems are held out, none is left to train on",
                self.source.name
            )));
        }
        let problems = self.problems.split_off(total - wanted);
        let numbers = self.numbers.split_off(total - wanted);
        let held_out = Part { source: self.source.clone(), problems, numbers };
        Ok((self, held_out))
    }

    /// Takes out the problems that have a fault, and gives these with their places.
    fn without_faults(
        &mut self,
        fault: &(dyn Fn(&Problem) -> Option<String> + Sync),
    ) -> Vec<(String, String)> {
        let found: Vec<Option<String>> =
            pool::install(|| self.problems.par_iter().map(fault).collect());
        let mut each = found.iter();
        let places: Vec<String> =
            self.numbers.iter().map(|number| self.source.place(*number)).collect();
        self.retain(|_| each.next().is_some_and(Option::is_none));
        places.into_iter().zip(found).filter_map(|(place, fault)| Some((place, fault?))).collect()
    }
}

impl Task for FileProblems {
    fn name(&self) -> &str {
        "file"
    }

    fn problem(&self, seed: u64, index: u64) -> Problem {
        let item = self.epochs.item(seed, index) as usize;
        let problem = self.trained.problems.get(item).cloned();
        problem.unwrap_or_else(|| Problem::text(0, String::new(), String::new()))
    }

    fn size(&self) -> Option<u64> {
        Some(self.trained.problems.len() as u64)
    }

    fn by_id(&self, _seed: u64, id: u64) -> Option<Problem> {
        self.trained.problems.get(usize::try_from(id).ok()?).cloned()
    }

    fn held_out(&self, _seed: u64, count: usize) -> Vec<Problem> {
        self.held_out.problems.iter().take(count).cloned().collect()
    }

    fn inspect(
        &mut self,
        fault: &(dyn Fn(&Problem) -> Option<String> + Sync),
    ) -> Result<Vec<String>> {
        let (trained, held_out) = self.sizes();
        let mut faults = self.trained.without_faults(fault);
        faults.extend(self.held_out.without_faults(fault));
        let Some(notice) = left_out(&faults, trained + held_out, self.skip_bad, "task.format")?
        else {
            return Ok(Vec::new());
        };
        let left = self.sizes();
        if (trained > 0 && left.0 == 0) || (held_out > 0 && left.1 == 0) {
            let which = if left.0 == 0 && trained > 0 { "to train on" } else { "held out" };
            return Err(Error::format(format!("{notice}\nno problem {which} is left")));
        }
        self.number()?;
        Ok(vec![notice])
    }

    fn worked_example(&self, _seed: u64, _index: u64) -> Option<Example> {
        None
    }

    fn verifier(&self) -> Box<dyn Verifier> {
        Box::new(FinalAnswer::default())
    }

    fn language(&self) -> Language<'_> {
        Language::FreeText
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::HeldOutFile;
    use super::*;
    use tempfile::TempDir;

    /// A folder with files of these names and contents.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn open(text: &str, format: FileFormat) -> Result<Opened> {
        let folder = folder(&[("p.jsonl", text)]);
        FileProblems::open(&FileSettings {
            format,
            ..FileSettings::new(folder.path().join("p.jsonl"))
        })
    }

    fn parse(text: &str) -> Result<FileProblems> {
        open(text, FileFormat::default()).map(|opened| opened.problems)
    }

    fn lines(count: usize) -> String {
        (0..count).map(|i| format!("{{\"prompt\": \"q{i}\", \"answer\": {i}}}\n")).collect()
    }

    fn prompts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(|problem| problem.prompt().into_owned()).collect()
    }

    #[test]
    fn an_epoch_visits_every_training_problem_once() {
        let task = parse(&lines(25)).unwrap();
        assert_eq!((task.sizes(), task.size()), ((22, 3), Some(22)));
        assert_eq!(prompts(&task.held_out(0, 99)), ["q22", "q23", "q24"]);
        for (seed, epoch) in [(0, 0), (0, 1), (9, 1 << 30)] {
            let mut ids: Vec<u64> =
                (0..22).map(|i| task.problem(seed, epoch * 22 + i).id).collect();
            ids.sort_unstable();
            assert_eq!(ids, (0..22).collect::<Vec<u64>>());
        }
        for id in 0..22 {
            assert_eq!(task.by_id(7, id).unwrap().prompt(), format!("q{id}"));
        }
        assert!(task.by_id(7, 22).is_none() && task.by_id(7, u64::MAX).is_none());
    }

    #[test]
    fn what_was_found_stands_in_the_settings() {
        let text = "\u{feff}{\"question\": \"1/2?\", \"answer\": 0.5}\r\n\n{\"question\": \"x\", \"answer\": \"-3\"}";
        let format = FileFormat { held_out: 1, ..FileFormat::default() };
        let opened = open(text, format).unwrap();
        let problem = opened.problems.problem(0, 0);
        assert_eq!((&*problem.prompt(), problem.answer.as_str()), ("1/2?", "0.5"));
        let found = &opened.settings;
        assert_eq!(
            (found.format.prompt.as_str(), found.format.answer.as_str()),
            ("question", "answer")
        );
        assert_eq!(found.fingerprint.as_deref(), Some(fingerprint(text.as_bytes()).as_str()));
        assert!(opened.notices[0].ends_with(
            "p.jsonl: prompt `question`, answer `answer` (by the names of its columns)"
        ));
        assert_eq!(opened.notices[1..], ["1 problems to train on, 1 held out"]);
    }

    #[test]
    fn a_held_out_prompt_is_not_trained_on() {
        let text = format!("{}{}", lines(5), "{\"prompt\": \"q1\", \"answer\": 1}");
        let opened = open(&text, FileFormat::default()).unwrap();
        assert_eq!(opened.problems.sizes(), (4, 1));
        assert!((0..40).all(|i| opened.problems.problem(0, i).prompt() != "q1"));
        assert!(
            opened.notices[1].ends_with("1 of 5 problems are also held out and are not trained on"),
            "{:?}",
            opened.notices
        );
    }

    #[test]
    fn a_file_of_its_own_is_held_out_whole() {
        let folder = folder(&[
            ("t.jsonl", &lines(12)),
            ("e.csv", "question,solution\nq3,3\nnew,5\nq3,3\n"),
            ("same.jsonl", &lines(12)),
        ]);
        let (train, held_out) = (folder.path().join("t.jsonl"), folder.path().join("e.csv"));
        let mut settings = FileSettings::new(&train);
        settings.evaluation = Some(HeldOutFile::new(&held_out));
        let opened = FileProblems::open(&settings).unwrap();
        assert_eq!(opened.problems.sizes(), (11, 2));
        assert_eq!(prompts(&opened.problems.held_out(0, 99)), ["q3", "new"]);
        assert!(
            opened.notices.iter().any(|one| one.contains("1 of 12 problems are also held out"))
        );
        let found = opened.settings.evaluation.unwrap();
        assert_eq!((found.prompt.as_str(), found.answer.as_str()), ("question", "solution"));
        assert!(found.fingerprint.is_some());
        let all =
            FileProblems::open(&FileSettings { path: Default::default(), ..settings.clone() })
                .unwrap();
        assert_eq!((all.problems.sizes(), all.problems.size()), ((0, 2), Some(0)));
        settings.format.held_out = 1;
        assert!(FileProblems::open(&settings).err().unwrap().is_invalid());
        settings.format.held_out = 0;
        settings.evaluation = Some(HeldOutFile::new(folder.path().join("same.jsonl")));
        let error = FileProblems::open(&settings).err().unwrap();
        assert!(error.to_string().contains("every training prompt is also held out"), "{error}");
    }

    #[test]
    fn a_changed_file_is_refused() {
        let folder = folder(&[("p.jsonl", &lines(3))]);
        let path = folder.path().join("p.jsonl");
        let settings = FileProblems::open(&FileSettings::new(&path)).unwrap().settings;
        assert_eq!(FileProblems::open(&settings).unwrap().settings, settings);
        std::fs::write(&path, lines(3).replace("q1", "Q1")).unwrap();
        let error = FileProblems::open(&settings).err().unwrap();
        assert!(
            error.is_state() && error.to_string().contains("has changed since the run began"),
            "{error}"
        );
        let mut accepted = settings.clone();
        accepted.accept_changes();
        let accepted = FileProblems::open(&accepted).unwrap().settings;
        assert!(accepted.fingerprint.is_some() && accepted.fingerprint != settings.fingerprint);
    }

    #[test]
    fn errors_name_file_and_line() {
        let good = "{\"prompt\": \"a\", \"answer\": \"b\"}\n";
        for (bad, says) in [
            ("{\"prompt\": \"a\", \"answer\"", "p.jsonl:2: not a JSON object: EOF"),
            ("[1, 2]", "p.jsonl:2: not a JSON object"),
            (
                "{\"prompt\": \"a\", \"anwser\": 1}",
                "p.jsonl:2: no field `answer` (it has prompt, anwser)",
            ),
            ("{\"prompt\": \"\", \"answer\": 1}", "p.jsonl:2: `prompt` is empty"),
            ("nonsense", "p.jsonl:2: not a JSON object: expected ident"),
        ] {
            let error = parse(&format!("{good}{bad}\n{good}")).unwrap_err();
            assert!(error.is_format() && error.to_string().contains(says), "{error}");
            let format = FileFormat { skip_bad: true, held_out: 1, ..FileFormat::default() };
            let text = format!("{good}{bad}\n{}", good.replace('a', "c"));
            let opened = open(&text.replace("cnswer", "answer"), format).unwrap();
            assert_eq!(opened.problems.sizes(), (1, 1));
            assert!(
                opened.notices[1].starts_with("1 of 3 records are left out, e.g. "),
                "{:?}",
                opened.notices
            );
        }
        let seven = format!("{good}{}", "7\n".repeat(7));
        let error = parse(&seven).unwrap_err().to_string();
        assert!(
            error.starts_with("7 of 8 records cannot be used (task.format.skip_bad"),
            "{error}"
        );
        assert!(error.contains("p.jsonl:6: ") && !error.contains("p.jsonl:7: "), "{error}");
        assert!(error.ends_with("and 2 more"), "{error}");
        assert!(parse(" \n\n").unwrap_err().to_string().contains("no problem in the file"));
        assert!(
            parse("7\n8\n").unwrap_err().to_string().starts_with("2 of 2 records cannot be used")
        );
        assert!(parse(good).unwrap_err().to_string().contains("none is left"));
        assert!(parse(&good.repeat(3)).unwrap_err().to_string().contains("also held out"));
        assert!(FileProblems::open(&FileSettings::new("/no/such.jsonl")).err().unwrap().is_io());
        assert!(FileProblems::open(&FileSettings::new("/dev/zero")).err().unwrap().is_invalid());
        assert!(FileProblems::open(&FileSettings::default()).err().is_some());
    }

    #[test]
    fn an_inspection_names_lines_or_leaves_out() {
        let fault = |problem: &Problem| {
            (problem.prompt() == "q1" || problem.prompt() == "q9").then(|| "too odd".to_owned())
        };
        let mut strict = parse(&lines(10)).unwrap();
        let error = strict.inspect(&fault).unwrap_err().to_string();
        assert!(error.starts_with("2 of 10 records cannot be used"), "{error}");
        assert!(
            error.contains("p.jsonl:2: too odd") && error.contains("p.jsonl:10: too odd"),
            "{error}"
        );
        let format = FileFormat { skip_bad: true, held_out: 2, ..FileFormat::default() };
        let mut lax = open(&lines(10), format).unwrap().problems;
        let notices = lax.inspect(&fault).unwrap();
        assert!(notices[0].starts_with("2 of 10 records are left out, e.g. "), "{notices:?}");
        assert_eq!((lax.sizes(), lax.size()), ((7, 1), Some(7)));
        assert_eq!(prompts(&lax.held_out(0, 9)), ["q8"]);
        for id in 0..7 {
            assert_eq!(lax.by_id(0, id).unwrap().id, id);
        }
        assert!(lax.inspect(&fault).unwrap().is_empty());
        let error = lax.inspect(&|_: &Problem| Some("all".to_owned())).unwrap_err();
        assert!(error.to_string().contains("no problem to train on is left"), "{error}");
    }
}
