//! What is written down as token ids, of which the assistant's are learned.
//!
//! Prompt and completion are encoded apart, so that the model is trained to go on from the very ids that it is given when it
//! generates. With a chat template the turns of a conversation are found by rendering it up to each of them.

use super::written::ASSISTANT;
use crate::error::{Error, Result};
use crate::rl::episode::Scored;
use crate::tasks::{Message, Part};
use crate::text::ChatTemplate;
use crate::train::text_codec::{TextCodec, conversation};
use std::ops::Range;

/// A prompt and a completion as ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// What the model is given, at least one id.
    pub prompt: Vec<i32>,
    /// What follows, with the id that ends it.
    pub completion: Vec<i32>,
    /// `[completion]` 1 where an id is learned, 0 where it is only read: what users say between the assistant's turns.
    pub mask: Vec<u8>,
}

impl Encoded {
    /// As a policy scores it.
    pub fn scored(&self) -> Scored<'_> {
        Scored {
            mask: self.mask.contains(&0).then_some(&self.mask[..]),
            ..Scored::new(&self.prompt, &self.completion)
        }
    }

    /// Ids of both.
    pub fn tokens(&self) -> usize {
        self.prompt.len() + self.completion.len()
    }

    /// Ids that are learned.
    pub fn learned(&self) -> usize {
        self.mask.iter().filter(|mask| **mask != 0).count()
    }

    /// Cuts the end of the completion off, down to `most` ids of both.
    pub(super) fn cut(&mut self, most: usize) {
        let kept = most.saturating_sub(self.prompt.len());
        self.completion.truncate(kept);
        self.mask.truncate(kept);
    }

    fn push(&mut self, ids: Vec<i32>, learned: bool) {
        self.completion.extend(ids);
        self.mask.resize(self.completion.len(), u8::from(learned));
    }
}

/// How text becomes ids.
#[derive(Clone, Copy)]
pub(super) struct Encoder<'a> {
    pub codec: &'a TextCodec,
    /// Ids that end a turn.
    pub stop: &'a [i32],
}

impl Encoder<'_> {
    /// The ids of what is written after a prompt; `None`: running text, whose first id is the prompt.
    ///
    /// # Errors
    /// [`Error::is_invalid`] for text that cannot be encoded, and what a chat template reports.
    pub(super) fn encode(&self, prompt: Option<&Part>, reply: &Part) -> Result<Encoded> {
        let Some(prompt) = prompt else { return self.running(reply) };
        let has_ids = [prompt, reply].iter().any(|part| matches!(part, Part::Tokens(_)));
        let mut encoded = match self.codec.chat() {
            Some((template, system)) if !has_ids => {
                let before = conversation(std::slice::from_ref(prompt), system);
                self.turns(template, before, reply)?
            }
            _ => self.joined(prompt, reply)?,
        };
        self.end(&mut encoded);
        Ok(encoded)
    }

    fn text(&self, text: &str) -> Result<Vec<i32>> {
        self.codec.tokenizer().encode(text)
    }

    fn running(&self, text: &Part) -> Result<Encoded> {
        let mut prompt = match text {
            Part::Tokens(ids) => ids.clone(),
            text => self.codec.tokenizer().encode_prompt(&text.text())?,
        };
        let mut encoded = Encoded::default();
        if !prompt.is_empty() {
            let rest = prompt.split_off(1);
            encoded.push(rest, true);
        }
        encoded.prompt = prompt;
        self.end(&mut encoded);
        Ok(encoded)
    }

    /// A completion right after its prompt.
    fn joined(&self, prompt: &Part, reply: &Part) -> Result<Encoded> {
        let mut encoded = Encoded {
            prompt: self.codec.prompt(std::slice::from_ref(prompt))?,
            ..Encoded::default()
        };
        match reply {
            Part::Tokens(ids) => encoded.push(ids.clone(), true),
            Part::Text(text) => encoded.push(self.text(text)?, true),
            Part::Messages(all) => {
                for (i, message) in all.iter().enumerate() {
                    let feed = if i == 0 { "" } else { "\n" };
                    let ids = self.text(&format!("{feed}{}", message.content))?;
                    encoded.push(ids, message.role == ASSISTANT);
                }
            }
        }
        Ok(encoded)
    }

    /// The assistant's turns of a conversation as the template writes it.
    fn turns(
        &self,
        template: &ChatTemplate,
        mut messages: Vec<Message>,
        reply: &Part,
    ) -> Result<Encoded> {
        let from = messages.len();
        match reply {
            Part::Messages(all) => messages.extend(all.iter().cloned()),
            reply => messages
                .push(Message { role: ASSISTANT.to_owned(), content: reply.text().into_owned() }),
        }
        let last = messages.iter().rposition(|message| message.role == ASSISTANT);
        let Some(last) = last.filter(|last| *last >= from) else {
            return Err(Error::invalid("the completion has no turn of the assistant"));
        };
        messages.truncate(last + 1);
        let whole = template.render(&messages, false)?;
        let mut spans: Vec<Range<usize>> = Vec::new();
        for at in from..=last {
            if messages[at].role != ASSISTANT {
                continue;
            }
            if at == last {
                let opening = template.render(&messages[..at], true)?;
                spans.push(shared(&opening, &whole)..whole.len());
            } else if let Some(span) = earlier(template, &messages, at, &whole) {
                spans.push(span);
            }
        }
        let mut encoded = Encoded::default();
        let mut at = 0;
        for (i, span) in spans.iter().enumerate() {
            let between = self.text(&whole[at..span.start.max(at)])?;
            if i == 0 {
                encoded.prompt = between;
            } else {
                encoded.push(between, false);
            }
            let turn = self.text(&whole[span.start.max(at)..span.end])?;
            // What a template writes after the id that ends a turn, the model never has to write.
            let end = turn.iter().rposition(|id| self.stop.contains(id)).map(|at| at + 1);
            let mut turn = turn;
            let after = turn.split_off(end.unwrap_or(turn.len()));
            encoded.push(turn, true);
            if i + 1 < spans.len() {
                encoded.push(after, false);
            }
            at = span.end;
        }
        Ok(encoded)
    }

    /// A completion ends with an id that ends generation.
    fn end(&self, encoded: &mut Encoded) {
        let ended = encoded.completion.last().is_some_and(|last| self.stop.contains(last));
        let own = self.codec.tokenizer().eos().first().or(self.stop.first());
        if let Some(end) = own.filter(|_| !ended) {
            encoded.push(vec![*end], true);
        }
    }
}

/// Where a turn that is not the last stands, if the template writes it there as it would if it were the last: some templates
/// leave the thoughts of earlier turns out.
fn earlier(
    template: &ChatTemplate,
    messages: &[Message],
    at: usize,
    whole: &str,
) -> Option<Range<usize>> {
    let opening = template.render(&messages[..at], true).ok()?;
    let closed = template.render(&messages[..=at], false).ok()?;
    (whole.starts_with(&closed) && closed.starts_with(&opening))
        .then_some(opening.len()..closed.len())
}

/// The bytes that two texts begin with alike.
fn shared(a: &str, b: &str) -> usize {
    let alike = a.char_indices().zip(b.chars()).take_while(|((_, a), b)| a == b);
    alike.last().map_or(0, |((at, last), _)| at + last.len_utf8())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::{Prompting, Template};
    use crate::text::Tokenizer;

    fn codec(source: Option<&str>, template: Template) -> TextCodec {
        let alphabet: String = (' '..='~').chain(['\n']).collect();
        let mut tokenizer = Tokenizer::characters(&alphabet).unwrap();
        if let Some(source) = source {
            tokenizer = tokenizer.with_chat_template(source, "own").unwrap();
        }
        TextCodec::new(tokenizer, &Prompting { template, ..Prompting::default() }, None).unwrap()
    }

    fn says(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    /// The prompt, then what is learned in brackets and what is only read without.
    fn shown(codec: &TextCodec, prompt: Option<&Part>, reply: &Part) -> (String, String) {
        let stop = codec.tokenizer().eos().to_vec();
        let encoded = Encoder { codec, stop: &stop }.encode(prompt, reply).unwrap();
        assert_eq!(encoded.completion.len(), encoded.mask.len());
        assert_eq!(encoded.completion.last(), stop.first());
        let text = |ids: &[i32]| codec.tokenizer().decode(ids).unwrap();
        let mut all = String::new();
        let pieces: Vec<(i32, u8)> =
            encoded.completion.iter().copied().zip(encoded.mask.iter().copied()).collect();
        for piece in pieces.chunk_by(|a, b| a.1 == b.1) {
            let ids: Vec<i32> = piece.iter().map(|(id, _)| *id).collect();
            let text = text(&ids);
            all += &if piece[0].1 == 1 { format!("[{text}]") } else { text };
        }
        (text(&encoded.prompt), all)
    }

    const CHAT: &str = "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";

    #[test]
    fn a_completion_goes_on_from_what_generation_is_given() {
        let text = |text: &str| Part::Text(text.into());
        let turns = |all: &[(&str, &str)]| {
            Part::Messages(all.iter().map(|(role, text)| says(role, text)).collect())
        };
        let chat = codec(Some(CHAT), Template::Auto);
        let prompt = text("2+2");
        let of = |reply: &Part| shown(&chat, Some(&prompt), reply);
        assert_eq!(of(&text("4")), ("<u>2+2\n<a>".into(), "[4\n]".into()));
        assert_eq!(of(&turns(&[("assistant", "4")])), of(&text("4")));
        assert_eq!(
            of(&turns(&[("assistant", "4"), ("user", "+1"), ("assistant", "5"), ("user", "?")])),
            ("<u>2+2\n<a>".into(), "[4\n]<u>+1\n<a>[5\n]".into())
        );
        let given = chat.prompt(std::slice::from_ref(&prompt)).unwrap();
        let stop = chat.tokenizer().eos().to_vec();
        let encoder = Encoder { codec: &chat, stop: &stop };
        assert_eq!(encoder.encode(Some(&prompt), &text("4")).unwrap().prompt, given);
        let plain = codec(Some(CHAT), Template::Plain);
        assert_eq!(shown(&plain, Some(&prompt), &text("=4")), ("2+2".into(), "[=4]".into()));
        assert_eq!(shown(&plain, None, &text("abc")), ("a".into(), "[bc]".into()));
        let several = turns(&[("assistant", "4"), ("user", "+1"), ("assistant", "5")]);
        assert_eq!(shown(&plain, Some(&prompt), &several), ("2+2".into(), "[4]\n+1[\n5]".into()));
        let ids = Part::Tokens(vec![3, 4]);
        assert_eq!(encoder.encode(Some(&ids), &ids).unwrap().prompt, [3, 4]);
    }

    /// A template that rewrites earlier turns, and opens the next with words that a finished one has not.
    #[test]
    fn where_the_template_hides_a_turn_the_last_one_is_learned() {
        let source = "{% for m in messages %}{% if loop.last or m.role == 'user' %}<{{ m.role[0] }}>{{ m.content }}{% else %}<a>..{% endif %}{% endfor %}{% if add_generation_prompt %}<a>think{% endif %}";
        let chat = codec(Some(source), Template::Auto);
        let reply =
            Part::Messages(vec![says("assistant", "x"), says("user", "u"), says("assistant", "y")]);
        let prompt = Part::Text("q".into());
        assert_eq!(shown(&chat, Some(&prompt), &reply), ("<u>q<a>..<u>u<a>".into(), "[y]".into()));
    }
}
