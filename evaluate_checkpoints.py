"""The log's name for addition/evaluate_checkpoints.py: python evaluate_checkpoints.py CKPT ... --output out.json"""

from addition.evaluate_checkpoints import main

if __name__ == "__main__":
    main()
