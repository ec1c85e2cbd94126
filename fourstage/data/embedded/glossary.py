"""Terms of machine learning, each with a definition and a fact. Answers are memorised; held out is the phrasing alone.

Definitions are short and begin with their term, so that a model of a million parameters can keep them apart.
"""

TERMS = {
    "an LLM": (
        "An LLM is a large language model, which has read much text and predicts the next token.",
        "It is a kind of neural network.",
    ),
    "a token": (
        "A token is a small piece of text, such as a word or a part of a word.",
        "Long words are split into several tokens.",
    ),
    "a tokenizer": ("A tokenizer is a tool that splits text into tokens.", "It is made before the model is trained."),
    "a prompt": ("A prompt is the text that a model is given and goes on from.", "A clear prompt helps."),
    "pre-training": (
        "Pre-training is the first stage, in which a model learns language by continuing text.",
        "It needs the most text.",
    ),
    "instruction tuning": (
        "Instruction tuning is the second stage, in which a model learns to answer questions.",
        "It needs good examples.",
    ),
    "preference tuning": (
        "Preference tuning is the third stage, in which a model learns which answers people like.",
        "It starts from choices of people.",
    ),
    "reasoning tuning": (
        "Reasoning tuning is the fourth stage, in which a model learns from checked answers.",
        "It rewards what is right.",
    ),
    "a reward model": (
        "A reward model is a model that scores answers as a person would choose.",
        "It learns from pairs of answers.",
    ),
    "a loss": ("A loss is a number that tells how wrong a model is.", "Training makes it smaller."),
    "a gradient": ("A gradient is the direction in which a loss grows fastest.", "Weights move against it."),
    "a weight": ("A weight is a number inside a model that training changes.", "A large model has billions of them."),
    "an epoch": ("An epoch is one pass over all the training data.", "Too many epochs lead to learning by heart."),
    "a batch": ("A batch is a group of examples that is used for one step.", "A large batch needs more memory."),
    "a learning rate": (
        "A learning rate is the size of the steps that training takes.",
        "If it is too large, training fails.",
    ),
    "an optimizer": ("An optimizer is the rule by which weights are changed.", "Adam and Muon are well known."),
    "attention": (
        "Attention is the part of a model that looks back at earlier tokens.",
        "It decides which of them matter.",
    ),
    "a transformer": ("A transformer is a network of layers with attention.", "Most language models are built so."),
    "an embedding": (
        "An embedding is a list of numbers that stands for a token.",
        "Similar tokens have similar numbers.",
    ),
    "a checkpoint": ("A checkpoint is a saved copy of a model during training.", "A run can go on from it."),
    "a policy": ("A policy is the model that writes the answers while it is rewarded.", "Its changes are kept small."),
    "a verifier": ("A verifier is a program that checks whether an answer is right.", "It needs no person."),
    "overfitting": (
        "Overfitting is learning the training data by heart and failing on new data.",
        "Held-out data shows it.",
    ),
    "a benchmark": ("A benchmark is a set of tests on which models are compared.", "Training on it is cheating."),
}
TRAINING = (
    "What is {}?",
    "Explain what {} is.",
    "Tell me about {}.",
    "Can you tell me what {} is?",
    "What does {} mean?",
    "Define {}.",
    "I want to know what {} is.",
    "Please explain {}.",
    "Do you know what {} is?",
    "Would you tell me what {} is?",
    "Would you explain to me what {} is?",
    "Explain {} to me.",
)
HELD_OUT = ("Please define {}.", "Could you explain {} to me?")
# Asked in texts of stage 1 only.
PRETRAINING_ONLY = ("Why is {} useful?", "How does {} work?")
