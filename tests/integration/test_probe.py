import time
def test_probe(commands, corpus, trained, translate, data, train_words):
    t=time.time()
    out = translate(trained/"checkpoint_last.pt", subset="test")
    print("generate", time.time()-t, len(out["H"]), out.keys())
    out = translate(trained/"checkpoint_last.pt")
    print(out["H"], out["P"])
