class S:
    def savefig(self, *a, **k):
        pass


FIGURES = {n: lambda rows: (str(len(rows)), S()) for n in ("sparse", "dimensions", "flips")}
