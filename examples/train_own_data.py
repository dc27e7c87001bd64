"""Fine-tune Janus on your own pictures, for answering and drawing; add the game by one word.

python examples/train_own_data.py MODEL DATA.jsonl     rows: image, question, answer, caption
"""

import sys

from unigame import UniGameConfig, UniGameTrainer
from unigame.data import build_dataset

model, path = sys.argv[1:3]
args = UniGameConfig(
    output_dir="runs/own",
    generation_weight=1.0,  # captions train the drawing
    learning_rate=1e-4,
    num_train_epochs=3,
    per_device_train_batch_size=8,
)
data = build_dataset([{"type": "vqa", "path": path}])
methods = ["sft"]  # plain fine-tuning; with ["selfplay"] the model also plays against itself
trainer = UniGameTrainer(model=model, args=args, train_dataset=data, methods=methods)
trainer.train()
trainer.save_model()
trainer.save_state()  # the log, for `unigame report`
print(f"next: unigame answer PICTURE 'a question' --model {model} --adapter {args.output_dir}")
